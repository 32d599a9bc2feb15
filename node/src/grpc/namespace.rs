//! Which namespace a call is about, and under which grants: said in its metadata, so that no message need say it.
//!
//! `quorate-namespace: NAME`, without which `default` is meant; `quorate-fence: lock/NAME=TOKEN` (or `scope/ID=TOKEN`,
//! `task/ID=TOKEN`), at most eight times. Each call gets a [`Door`] of its own, so handlers cannot mix namespaces up.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::Either;
use quorate_proto::v1::{Fence, FenceKind};
use quorate_raft::state::fence::MAX_FENCES;
use quorate_raft::state::namespaces::{DEFAULT, check_name};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use super::{Door, checked, status};
use crate::core::Core;

const NAMESPACE_KEY: &str = "quorate-namespace";
const FENCE_KEY: &str = "quorate-fence";

/// A service that is made anew for each call, on the call's own door.
pub(super) struct InNamespace<S, F> {
    core: Arc<Core>,
    make: F,
    service: PhantomData<fn() -> S>,
}

impl<S, F: Fn(Door) -> S> InNamespace<S, F> {
    pub(super) fn new(core: &Arc<Core>, make: F) -> Self {
        InNamespace { core: core.clone(), make, service: PhantomData }
    }
}

impl<S, F: Clone> Clone for InNamespace<S, F> {
    fn clone(&self) -> Self {
        InNamespace { core: self.core.clone(), make: self.make.clone(), service: PhantomData }
    }
}

impl<S: NamedService, F> NamedService for InNamespace<S, F> {
    const NAME: &'static str = S::NAME;
}

impl<S, F> Service<http::Request<Body>> for InNamespace<S, F>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    F: Fn(Door) -> S,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Self::Response, Infallible>>>;

    // The generated services are always ready.
    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match door(&self.core, request.headers()) {
            Ok(door) => Either::Left((self.make)(door).call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

fn door(core: &Arc<Core>, headers: &http::HeaderMap) -> Result<Door, Status> {
    let namespace = match headers.get(NAMESPACE_KEY) {
        None => DEFAULT,
        Some(name) => {
            name.to_str().map_err(|_| status::invalid(NAMESPACE_KEY, "the namespace's name must be ASCII"))?
        }
    };
    checked(check_name(namespace))?;
    let fences: Vec<Fence> = (headers.get_all(FENCE_KEY).iter())
        .map(|value| value.to_str().ok().and_then(parse_fence).ok_or_else(malformed))
        .collect::<Result<_, _>>()?;
    if fences.len() > MAX_FENCES {
        return Err(status::invalid(FENCE_KEY, format!("a call may carry {MAX_FENCES} fences; got {}", fences.len())));
    }
    Ok(Door { core: core.clone(), namespace: namespace.into(), fences })
}

fn malformed() -> Status {
    status::invalid(FENCE_KEY, "a fence must be lock/NAME=TOKEN, scope/ID=TOKEN or task/ID=TOKEN")
}

fn parse_fence(text: &str) -> Option<Fence> {
    let (what, token) = text.rsplit_once('=')?;
    let (kind, name) = what.split_once('/')?;
    let kind = match kind {
        "lock" => FenceKind::Lock,
        "scope" => FenceKind::Scope,
        "task" => FenceKind::Task,
        _ => return None,
    };
    Some(Fence { kind: kind as i32, name: name.to_owned(), token: token.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_a_kind_a_name_and_a_token() {
        let parsed = |text| parse_fence(text).map(|fence| (fence.kind(), fence.name, fence.token));
        assert_eq!(parsed("lock/db=7"), Some((FenceKind::Lock, "db".to_owned(), 7)));
        assert_eq!(parsed("task/a/b=c=9"), Some((FenceKind::Task, "a/b=c".to_owned(), 9)));
        for bad in ["", "lock", "lock/db", "lock/db=", "lock/db=x", "lock/db=-1", "door/db=1", "lock=1"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
