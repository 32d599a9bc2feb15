//! Which commands take space. Every one writes an entry; what counts is what stays behind when the log is purged.

use quorate_proto::log::command;
use quorate_proto::v1::TransactRequest;
use quorate_proto::v1::transact_op::Op;

/// How much a command takes, least first. What is admitted admits everything before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Growth {
    /// The leader's own: time, ends of sessions, what makes the state smaller, who belongs to the cluster.
    Vital,
    /// Removes, ends or lets go of something, or lets an operator hold things back.
    Frees,
    /// Goes with work that is under way: a result has cost money, and to lose it because of a disk would cost it again.
    /// Bounded by what was claimed before.
    Finishes,
    /// Everything else.
    Grows,
}

/// What the command takes.
pub(crate) fn growth(body: &command::Body) -> Growth {
    use command::Body as C;
    match body {
        C::ExpireSession(_)
        | C::Tick(_)
        | C::DescribeCluster(_)
        | C::CompactEvents(_)
        | C::ForgetTasks(_)
        | C::RetireNode(_)
        | C::RaiseFeatureLevel(_)
        | C::RecordBackup(_) => Growth::Vital,

        C::CloseSession(_)
        | C::DrainAgent(_)
        | C::DeregisterAgent(_)
        | C::CancelTask(_)
        | C::PurgeTasks(_)
        | C::ResolveDeadlocks(_)
        | C::ReleaseLock(_)
        | C::ForceReleaseLock(_)
        | C::ReleaseScope(_)
        | C::ForceReleaseScope(_)
        | C::SetLimit(_)
        | C::DeleteLimit(_)
        | C::ForceBreaker(_)
        | C::DeleteRetryProfile(_)
        | C::DeleteSchedule(_)
        | C::PauseSchedule(_)
        | C::SetNamespace(_)
        | C::DeleteNamespace(_)
        | C::Unsubscribe(_)
        | C::Leave(_)
        | C::Ack(_)
        | C::PurgeDead(_)
        | C::KvDelete(_)
        | C::SetKvPolicy(_)
        | C::DeleteKvPolicy(_) => Growth::Frees,
        // Whoever joins a subscription acknowledges, and what all have acknowledged goes.
        C::Consume(_) => Growth::Frees,
        C::FireSchedule(firing) if firing.missed => Growth::Frees,
        C::Transact(request) if only_frees(request) => Growth::Frees,

        // A session resumed, and the agent in it, keep the work that hangs on them.
        C::OpenSession(_)
        | C::RegisterAgent(_)
        | C::ReportAgent(_)
        | C::FinishTask(_)
        | C::DecideTask(_)
        | C::ExtendLock(_)
        | C::AcquireBreaker(_)
        | C::ReportBreaker(_) => Growth::Finishes,

        C::SubmitTasks(_)
        | C::ClaimTasks(_)
        | C::AddDependencies(_)
        | C::RedriveTasks(_)
        | C::StandingOrder(_)
        | C::AcquireLock(_)
        | C::AcquireScope(_)
        | C::SetShare(_)
        | C::SetDispatchPolicy(_)
        | C::SetRoutes(_)
        | C::ConfigureBreaker(_)
        | C::SetRetryProfile(_)
        | C::CreateSchedule(_)
        | C::RunScheduleNow(_)
        | C::FireSchedule(_)
        | C::SetBackupPolicy(_)
        | C::Publish(_)
        | C::Subscribe(_)
        | C::RedriveDead(_)
        | C::KvPut(_)
        | C::KvRollback(_)
        | C::Transact(_) => Growth::Grows,
    }
}

fn only_frees(request: &TransactRequest) -> bool {
    request.ops.iter().all(|op| match &op.op {
        Some(Op::Delete(_) | Op::Ack(_)) => true,
        Some(Op::Put(_) | Op::Publish(_)) | None => false,
    })
}

#[cfg(test)]
mod tests {
    use quorate_proto::log::FireSchedule;
    use quorate_proto::v1::TransactOp;

    use super::*;

    /// Each command as it is by default.
    fn table() -> Vec<(Growth, Vec<command::Body>)> {
        use command::Body as C;
        macro_rules! bodies { ($($name:ident),* $(,)?) => { vec![$(C::$name(Default::default())),*] } }
        let vital = bodies![
            ExpireSession,
            Tick,
            DescribeCluster,
            CompactEvents,
            ForgetTasks,
            RetireNode,
            RaiseFeatureLevel,
            RecordBackup,
        ];
        // A transaction of nothing is refused by its room.
        let frees = bodies![
            CloseSession,
            DrainAgent,
            DeregisterAgent,
            CancelTask,
            PurgeTasks,
            ResolveDeadlocks,
            ReleaseLock,
            ForceReleaseLock,
            ReleaseScope,
            ForceReleaseScope,
            SetLimit,
            DeleteLimit,
            ForceBreaker,
            DeleteRetryProfile,
            DeleteSchedule,
            PauseSchedule,
            SetNamespace,
            DeleteNamespace,
            Unsubscribe,
            Leave,
            Ack,
            PurgeDead,
            KvDelete,
            SetKvPolicy,
            DeleteKvPolicy,
            Consume,
            Transact,
        ];
        let finishes = bodies![
            OpenSession,
            RegisterAgent,
            ReportAgent,
            FinishTask,
            DecideTask,
            ExtendLock,
            AcquireBreaker,
            ReportBreaker,
        ];
        let grows = bodies![
            SubmitTasks,
            ClaimTasks,
            AddDependencies,
            RedriveTasks,
            StandingOrder,
            AcquireLock,
            AcquireScope,
            SetShare,
            SetDispatchPolicy,
            SetRoutes,
            ConfigureBreaker,
            SetRetryProfile,
            CreateSchedule,
            RunScheduleNow,
            FireSchedule,
            SetBackupPolicy,
            Publish,
            Subscribe,
            RedriveDead,
            KvPut,
            KvRollback,
        ];
        vec![(Growth::Vital, vital), (Growth::Frees, frees), (Growth::Finishes, finishes), (Growth::Grows, grows)]
    }

    #[test]
    fn every_command_has_its_growth() {
        for (wanted, bodies) in table() {
            for body in bodies {
                assert_eq!(growth(&body), wanted, "{body:?}");
            }
        }
    }

    #[test]
    fn a_missed_tick_submits_nothing() {
        let firing = FireSchedule { missed: true, ..FireSchedule::default() };
        assert_eq!(growth(&command::Body::FireSchedule(firing)), Growth::Frees);
    }

    #[test]
    fn a_transaction_takes_what_the_most_demanding_of_its_writes_takes() {
        let of = |ops: Vec<Op>| {
            let ops = ops.into_iter().map(|op| TransactOp { op: Some(op) }).collect();
            growth(&command::Body::Transact(TransactRequest { ops, ..TransactRequest::default() }))
        };
        let (delete, ack) = (Op::Delete(Default::default()), Op::Ack(Default::default()));
        assert_eq!(of(vec![delete.clone(), ack.clone()]), Growth::Frees);
        assert_eq!(of(vec![delete, Op::Put(Default::default())]), Growth::Grows);
        assert_eq!(of(vec![ack, Op::Publish(Default::default())]), Growth::Grows);
    }

    #[test]
    fn what_is_admitted_admits_everything_that_takes_less() {
        assert!(Growth::Vital < Growth::Frees && Growth::Frees < Growth::Finishes && Growth::Finishes < Growth::Grows);
    }
}
