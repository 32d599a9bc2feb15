//! Compiles the .proto files with protox: no `protoc` on the machine is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "quorate/v1/sessions.proto",
        "quorate/v1/agents.proto",
        "quorate/v1/tasks.proto",
        "quorate/v1/dispatch.proto",
        "quorate/v1/breakers.proto",
        "quorate/v1/retries.proto",
        "quorate/v1/schedules.proto",
        "quorate/v1/progress.proto",
        "quorate/v1/locks.proto",
        "quorate/v1/bus.proto",
        "quorate/v1/kv.proto",
        "quorate/v1/transact.proto",
        "quorate/v1/blobs.proto",
        "quorate/v1/watch.proto",
        "quorate/v1/namespaces.proto",
        "quorate/v1/backups.proto",
        "quorate/v1/cluster.proto",
        "quorate/log/command.proto",
        "quorate/peer/transport.proto",
    ];
    println!("cargo:rerun-if-changed=quorate");
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
