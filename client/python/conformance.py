#!/usr/bin/env python3
"""A client in another language: Python stubs generated from the same protos, on the same path an agent takes.

Usage: conformance.py STUBS_DIR HOST:PORT. Each step asserts; the last line is printed only if all hold.
"""

import sys
import uuid

import grpc

sys.path.insert(0, sys.argv[1])

from quorate.v1 import agents_pb2, agents_pb2_grpc  # noqa: E402
from quorate.v1 import sessions_pb2, sessions_pb2_grpc  # noqa: E402
from quorate.v1 import tasks_pb2, tasks_pb2_grpc  # noqa: E402


def refused(code, call, request):
    """The call must be refused with this code; gives the error."""
    try:
        answer = call(request)
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()} instead of {code}: {error.details()}"
        return error
    raise AssertionError(f"{code} expected, got {answer}")


def metadata(error, key):
    return dict(error.trailing_metadata()).get(key)


def main():
    channel = grpc.insecure_channel(sys.argv[2])
    sessions = sessions_pb2_grpc.SessionsStub(channel)
    agents = agents_pb2_grpc.AgentsStub(channel)
    tasks = tasks_pb2_grpc.TasksStub(channel)
    capability = "python-" + uuid.uuid4().hex

    session = sessions.Open(sessions_pb2.OpenSessionRequest(ttl_ms=5_000, client="conformance.py")).session
    assert session.epoch > 0
    agent = agents.Register(
        agents_pb2.RegisterAgentRequest(agent_id=capability, session_id=session.id, capabilities=[capability])
    ).agent
    assert agent.status == agents_pb2.AGENT_STATUS_AVAILABLE

    spec = tasks_pb2.TaskSpec(
        title="from python", required_capabilities=[capability], payload=b"{}", idempotency_key=capability
    )
    first = tasks.Submit(tasks_pb2.SubmitTasksRequest(tasks=[spec])).tasks[0]
    again = tasks.Submit(tasks_pb2.SubmitTasksRequest(tasks=[spec])).tasks[0]
    assert again.task_id == first.task_id and again.existed, "the same key is the same task"

    claim = tasks_pb2.ClaimTasksRequest(agent_id=capability, session_id=session.id, wait_ms=1_000)
    claim.request.session_id, claim.request.sequence = session.id, 1
    claimed = tasks.Claim(claim)
    resent = tasks.Claim(claim)
    assert resent == claimed, "a resend gets the same answer"
    token = claimed.tasks[0].claim.token
    held = sessions.KeepAlive(sessions_pb2.KeepAliveRequest(session_id=session.id)).held
    assert [(one.task_id, one.token) for one in held] == [(first.task_id, token)]

    finish = tasks_pb2.FinishTaskRequest(
        task_id=first.task_id, token=token, kind=tasks_pb2.FINISH_KIND_COMPLETED, result=b"done"
    )
    assert tasks.Finish(finish).status == tasks_pb2.TASK_STATUS_COMPLETED
    found = tasks.Get(tasks_pb2.GetTaskRequest(task_id=first.task_id)).task
    assert found.result == b"done" and found.attempts == 1

    finish.kind = tasks_pb2.FINISH_KIND_FAILED
    refused(grpc.StatusCode.ABORTED, tasks.Finish, finish)
    refused(grpc.StatusCode.NOT_FOUND, tasks.Get, tasks_pb2.GetTaskRequest(task_id="no-such-task"))
    spec.idempotency_key, spec.priority = "", 11
    error = refused(grpc.StatusCode.INVALID_ARGUMENT, tasks.Submit, tasks_pb2.SubmitTasksRequest(tasks=[spec]))
    assert metadata(error, "quorate-field") == "tasks[0].priority", metadata(error, "quorate-field")

    sessions.Close(sessions_pb2.CloseSessionRequest(session_id=session.id))
    gone = agents.Get(agents_pb2.GetAgentRequest(agent_id=capability)).agent
    assert gone.status == agents_pb2.AGENT_STATUS_UNAVAILABLE, gone
    print("conformance: a client generated for Python did what the Rust one does")


if __name__ == "__main__":
    main()
