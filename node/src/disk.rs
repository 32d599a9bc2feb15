//! The disk that this node's data is on: how much room it has, and what is taken in the meantime.
//!
//! ```text
//! space     asks the file system; waits at start until there is room
//! gauge     free bytes → OK, LOW, FULL, with hysteresis
//! ballast   a file that holds room and gives it back when the disk is FULL
//! growth    which commands take space
//! door      what this leader takes, given its own disk and the other voters'
//! relief    makes room, and hands leadership to a node that has some
//! ```
//!
//! Invariant: free space is judged as if the ballast were in place, so giving it up or taking it back changes no state.
//!
//! Deliberately absent: a refusal in the state machine. Replicas differ in how full their disks are, and what one refuses
//! all must refuse; so it is the leader's door that refuses, before anything is in the log (ADR 16).

mod ballast;
mod door;
mod gauge;
mod growth;
mod relief;
mod space;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use quorate_proto::peer::{AppendReply, AppendRequest};
use quorate_proto::v1 as pb;
use quorate_proto::v1::DiskState;
use tonic::Status;

use self::ballast::Ballast;
use self::space::Room;
use crate::core::Core;
use crate::grpc::status;

pub(crate) use self::growth::{Growth, growth};
pub(crate) use self::space::{is_no_space, start_again, wait_for_space};

/// The request field that a refusal for want of space names.
pub(crate) const FIELD: &str = "disk";

/// Between two looks, and while the disk is not far from low.
const CALM: Duration = Duration::from_millis(500);
const NEAR: Duration = Duration::from_millis(100);
/// Not far: less than so many times the reserve is free.
const NOT_FAR: u64 = 8;
/// The largest ballast.
const MOST_BALLAST: u64 = 64 << 20;

/// The disk as this node last saw it, and what follows from that.
pub(crate) struct Disk {
    dir: PathBuf,
    reserve_bytes: u64,
    /// What is in memory and takes space once it is flushed.
    unflushed_bytes: AtomicU64,
    seen: Mutex<Seen>,
    door: Mutex<Door>,
}

struct Seen {
    room: Room,
    state: DiskState,
    ballast: Ballast,
}

/// What this node takes while it leads.
struct Door {
    admits: Growth,
    why: String,
}

impl Disk {
    /// Looks at the disk for the first time. `data_dir` exists.
    pub(crate) fn open(data_dir: &Path, reserve_bytes: u64, write_buffer_bytes: u64) -> anyhow::Result<Self> {
        let shown = data_dir.display();
        let room = space::room(data_dir).with_context(|| format!("the free space of data_dir {shown} is not known"))?;
        let reserve = gauge::reserve_of(reserve_bytes, room.total);
        if reserve > 0 && write_buffer_bytes > reserve / 2 {
            tracing::warn!(
                write_buffer_bytes,
                reserve,
                "one write buffer takes more than half of the space kept free on this disk and may not fit when it is full: \
                 set a smaller write_buffer_bytes"
            );
        }
        let ballast = Ballast::open(data_dir, (reserve / 2).min(MOST_BALLAST));
        let disk = Disk {
            dir: data_dir.to_owned(),
            reserve_bytes,
            unflushed_bytes: AtomicU64::new(0),
            seen: Mutex::new(Seen { room, state: DiskState::Ok, ballast }),
            door: Mutex::new(Door { admits: Growth::Grows, why: String::new() }),
        };
        disk.look();
        disk.set_door(0, &[]);
        Ok(disk)
    }

    /// What others are told of it.
    pub(crate) fn now(&self) -> pb::Disk {
        let seen = self.seen.lock();
        pb::Disk { total_bytes: seen.room.total, free_bytes: seen.room.free, state: seen.state as i32 }
    }

    /// Whether this node takes entries and snapshots from its leader.
    pub(crate) fn takes_entries(&self) -> bool {
        self.state() != DiskState::Full
    }

    /// Whether what takes space is refused by this node while it leads.
    pub(crate) fn cluster_is_low(&self) -> bool {
        self.door.lock().admits < Growth::Grows
    }

    /// Whether a command passes while this node leads; if not, the reason for its caller.
    pub(crate) fn admit(&self, growth: Growth) -> Result<(), String> {
        let door = self.door.lock();
        if growth <= door.admits { Ok(()) } else { Err(door.why.clone()) }
    }

    fn state(&self) -> DiskState {
        self.seen.lock().state
    }

    /// The bytes below which this disk is low; 0: the guard is off.
    fn reserve(&self) -> u64 {
        gauge::reserve_of(self.reserve_bytes, self.seen.lock().room.total)
    }

    /// Asks the file system, and takes up or gives up the ballast. Blocks shortly.
    fn look(&self) {
        let room = match space::room(&self.dir) {
            Ok(room) => room,
            Err(error) => return tracing::warn!(%error, "the free space of the data directory is not known"),
        };
        let reserve = gauge::reserve_of(self.reserve_bytes, room.total);
        let mut seen = self.seen.lock();
        let before = seen.state;
        seen.room = room;
        let spoken_for = seen.ballast.missing().saturating_add(self.unflushed_bytes.load(Ordering::Relaxed));
        seen.state = gauge::judge(before, room.free.saturating_sub(spoken_for), reserve);
        match seen.state {
            DiskState::Full => seen.ballast.release(),
            // It was counted as missing, so there is room for it beyond the reserve.
            DiskState::Ok => seen.ballast.hold(),
            DiskState::Low | DiskState::Unspecified => {}
        }
        tell(before, seen.state, room.free, reserve);
    }

    fn pause(&self) -> Duration {
        let seen = self.seen.lock();
        let reserve = gauge::reserve_of(self.reserve_bytes, seen.room.total);
        let is_near = seen.state != DiskState::Ok || seen.room.free < reserve.saturating_mul(NOT_FAR);
        if is_near { NEAR } else { CALM }
    }

    fn set_door(&self, this: u64, others: &[(u64, Option<pb::Disk>)]) {
        let own = self.now();
        let states: Vec<_> = others.iter().map(|(_, disk)| disk.as_ref().map(|disk| disk.state())).collect();
        let admits = door::admits(own.state(), &states);
        let known = others.iter().filter_map(|(id, disk)| Some((*id, disk.as_ref()?)));
        let why = door::why(admits, std::iter::once((this, &own)).chain(known));
        *self.door.lock() = Door { admits, why };
    }
}

fn tell(before: DiskState, now: DiskState, free: u64, reserve: u64) {
    if before == now {
        return;
    }
    match now {
        DiskState::Ok | DiskState::Unspecified => tracing::info!(free, reserve, "this node's disk has room again"),
        DiskState::Low => tracing::warn!(free, reserve, "this node's disk has little room left"),
        DiskState::Full => {
            tracing::error!(free, reserve, "this node's disk is full: it takes nothing more until there is room");
        }
    }
}

/// Starts watching the disk, and acting on what is seen.
pub(crate) fn start(core: &Arc<Core>) {
    tokio::spawn(watch(core.clone()));
    tokio::spawn(relief::make_room(core.clone()));
    tokio::spawn(relief::lead_elsewhere(core.clone()));
}

async fn watch(core: Arc<Core>) {
    let this = core.settings.config.node_id;
    loop {
        let (disk, looking) = (core.disk.clone(), core.clone());
        let look = move || {
            let unflushed_bytes = looking.replica.unflushed_bytes() + looking.log.unflushed_bytes();
            disk.unflushed_bytes.store(unflushed_bytes, Ordering::Relaxed);
            disk.look();
        };
        if let Err(error) = tokio::task::spawn_blocking(look).await {
            tracing::warn!(%error, "a look at the disk failed");
        }
        let others: Vec<_> =
            core.voters().into_iter().filter(|id| *id != this).map(|id| (id, said_of_disk(&core, id))).collect();
        core.disk.set_door(this, &others);
        tokio::time::sleep(core.disk.pause()).await;
    }
}

/// What another member said lately of its disk.
fn said_of_disk(core: &Core, node_id: u64) -> Option<pb::Disk> {
    let heard = core.neighbours.health(node_id).filter(|heard| heard.is_fresh())?;
    heard.reply.disk.filter(|disk| disk.state() != DiskState::Unspecified)
}

/// Lets a replication stream through until one of its messages would be written to a full disk. Heartbeats are not: this
/// node goes on as a follower, and the leader keeps its majority for reads. The second stream goes behind the replies: it
/// says why they end, so that the leader waits a moment before it tries again.
pub(crate) fn while_there_is_room<S>(
    disk: Arc<Disk>,
    requests: S,
) -> (impl Stream<Item = Result<AppendRequest, Status>> + Send, impl Stream<Item = Result<AppendReply, Status>> + Send)
where
    S: Stream<Item = Result<AppendRequest, Status>> + Send,
{
    let ended = Arc::new(AtomicBool::new(false));
    let noted = ended.clone();
    let requests = requests.take_while(move |request| {
        let is_written = request.as_ref().is_ok_and(|request| !request.entries.is_empty());
        let goes_on = !is_written || disk.takes_entries();
        if !goes_on {
            noted.store(true, Ordering::Release);
        }
        std::future::ready(goes_on)
    });
    let reason = stream::once(async move {
        let reason: Option<Result<AppendReply, Status>> = ended.load(Ordering::Acquire).then(|| Err(full()));
        reason
    });
    (requests, reason.filter_map(std::future::ready))
}

/// What a peer is told that brings something to a full disk.
pub(crate) fn full() -> Status {
    status::unavailable("the disk of this node is full")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(dir: &Path, state: DiskState) -> Disk {
        let disk = Disk::open(dir, 0, 0).unwrap();
        disk.seen.lock().state = state;
        disk
    }

    fn request(entries: usize) -> Result<AppendRequest, Status> {
        Ok(AppendRequest { entries: vec![Default::default(); entries], ..AppendRequest::default() })
    }

    #[tokio::test]
    async fn a_full_disk_hears_heartbeats_and_takes_no_entries() {
        let dir = tempfile::tempdir().unwrap();
        for (state, passed, reasons) in [(DiskState::Ok, 3, 0), (DiskState::Low, 3, 0), (DiskState::Full, 1, 1)] {
            let sent = stream::iter([request(0), request(2), request(0)]);
            let (requests, reason) = while_there_is_room(Arc::new(disk(dir.path(), state)), sent);
            assert_eq!(requests.count().await, passed, "{state:?}");
            assert_eq!(reason.count().await, reasons, "{state:?}");
        }
    }

    #[test]
    fn the_door_follows_the_disks() {
        let dir = tempfile::tempdir().unwrap();
        let low = disk(dir.path(), DiskState::Low);
        low.set_door(1, &[]);
        assert!(low.cluster_is_low() && low.admit(Growth::Finishes).is_ok());
        let refusal = low.admit(Growth::Grows).unwrap_err();
        assert!(refusal.starts_with("the disk of node 1 has"), "{refusal}");
        low.seen.lock().state = DiskState::Ok;
        low.set_door(1, &[]);
        assert!(!low.cluster_is_low() && low.admit(Growth::Grows).is_ok());
    }
}
