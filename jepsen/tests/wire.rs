//! The wire, tried out in namespaces of its own: every fault is seen by a client as it should be.
//!
//! A test cannot go inside, for it has threads; the harness's binary does.

use std::process::Command;

use anyhow::{Result, ensure};
use quorate_jepsen::wire;

#[test]
fn every_fault_of_the_wire_is_seen() -> Result<()> {
    let missing = wire::missing();
    if !missing.is_empty() {
        eprintln!("not run: {}", missing.join("; "));
        return Ok(());
    }
    let output = Command::new(env!("CARGO_BIN_EXE_quorate-jepsen")).args(["self-test", "wire"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", output.status);
    // Each step, and not only a program that ends well.
    for step in ["a healthy wire", "delay", "a cut has a direction", "isolation", "loss", "rate", "a device"] {
        ensure!(said.contains(step), "no word of {step}: {said}");
    }
    Ok(())
}
