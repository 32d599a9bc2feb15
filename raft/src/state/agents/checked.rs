//! What a registration must look like, and its defaults. Deliberately absent: the state; only the request is looked at.

use quorate_proto::v1::{ExecutionMode, KeyValue, RegisterAgentRequest};

use super::MAX_CAPACITY;
use crate::error::{Outcome, invalid};
use crate::state::check_id;

const MAX_CAPABILITIES: usize = 64;
const MAX_METADATA: usize = 32;
const MAX_METADATA_VALUE_BYTES: usize = 1_024;
const MAX_TEXT_BYTES: usize = 1_024;
const DEFAULT_TYPE: &str = "general-purpose";

/// Checks a registration and fills its defaults in.
pub(super) fn registration(mut req: RegisterAgentRequest) -> Outcome<RegisterAgentRequest> {
    check_id("agent_id", &req.agent_id)?;
    check_id("session_id", &req.session_id)?;
    if req.agent_type.is_empty() {
        req.agent_type = DEFAULT_TYPE.to_owned();
    }
    check_id("agent_type", &req.agent_type)?;
    let mut capabilities: Vec<String> = req.capabilities.iter().map(|c| c.trim().to_owned()).collect();
    for (i, capability) in capabilities.iter().enumerate() {
        check_id(&format!("capabilities[{i}]"), capability)?;
    }
    capabilities.sort();
    capabilities.dedup();
    if !(1..=MAX_CAPABILITIES).contains(&capabilities.len()) {
        let message = format!("capabilities must be 1 to {MAX_CAPABILITIES} names; got {}", capabilities.len());
        return Err(invalid("capabilities", message));
    }
    req.capabilities = capabilities;
    req.capacity = req.capacity.max(1);
    if req.capacity > MAX_CAPACITY {
        return Err(invalid("capacity", format!("capacity must be 1 to {MAX_CAPACITY}; got {}", req.capacity)));
    }
    if ExecutionMode::try_from(req.execution_mode).is_err() {
        return Err(invalid("execution_mode", format!("execution_mode {} is not known", req.execution_mode)));
    }
    length("endpoint", &req.endpoint)?;
    metadata_fits(&req.metadata)?;
    Ok(req)
}

fn metadata_fits(metadata: &[KeyValue]) -> Outcome<()> {
    if metadata.len() > MAX_METADATA {
        let message = format!("metadata must be at most {MAX_METADATA} entries; got {}", metadata.len());
        return Err(invalid("metadata", message));
    }
    for (i, entry) in metadata.iter().enumerate() {
        check_id(&format!("metadata[{i}].key"), &entry.key)?;
        if entry.value.len() > MAX_METADATA_VALUE_BYTES {
            let field = format!("metadata[{i}].value");
            return Err(invalid(&field, format!("{field} must be at most {MAX_METADATA_VALUE_BYTES} bytes")));
        }
    }
    Ok(())
}

/// Free text has a bound.
pub(super) fn length(field: &str, text: &str) -> Outcome<()> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(invalid(field, format!("{field} must be at most {MAX_TEXT_BYTES} bytes; got {}", text.len())));
    }
    Ok(())
}
