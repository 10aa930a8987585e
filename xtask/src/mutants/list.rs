//! The faults, and the suites that should find them.

/// Tests that are run together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suite {
    /// 300 seeds of the simulation.
    Simulation,
    /// The VM's own tests.
    Vm,
    /// The VM under shuttle.
    VmModel,
    /// The stores' own tests.
    Store,
    /// The driver's own tests.
    Driver,
    /// The driver's wake-ups under shuttle.
    DriverModel,
    /// Parked requests under shuttle.
    ParkModel,
}

impl Suite {
    pub(super) const ALL: [Suite; 7] = [
        Suite::Simulation,
        Suite::Vm,
        Suite::VmModel,
        Suite::Store,
        Suite::Driver,
        Suite::DriverModel,
        Suite::ParkModel,
    ];

    /// Arguments of cargo: to run it, or to compile what it needs.
    pub(super) fn command(self, only_compile: bool) -> Vec<&'static str> {
        let test = |rest: &[&'static str], filter: &[&'static str]| {
            let mut all = vec!["test", "-q", "--profile", "mutants", "-p"];
            all.extend(rest);
            all.extend(if only_compile { &["--no-run"][..] } else { filter });
            all
        };
        match self {
            Suite::Simulation if only_compile => vec!["build", "-q", "--profile", "mutants", "-p", "xtask"],
            Suite::Simulation => vec!["run", "-q", "--profile", "mutants", "-p", "xtask", "--", "sim"],
            Suite::Vm => test(&["overspill-vm", "--lib", "--tests"], &[]),
            Suite::VmModel => test(&["overspill-vm", "--features", "shuttle", "--test", "shuttle"], &[]),
            Suite::Store => test(&["overspill-store", "--lib", "--tests"], &[]),
            Suite::Driver => test(&["overspill", "--lib", "--tests"], &[]),
            Suite::DriverModel => {
                test(&["overspill", "--features", "shuttle", "--lib"], &["driver::wake::model"])
            }
            Suite::ParkModel => test(&["overspill-fuse", "--features", "shuttle", "--lib"], &["park::model"]),
        }
    }
}

/// One fault.
pub(super) struct Fault {
    /// A word for its kind.
    pub(super) kind: &'static str,
    pub(super) name: &'static str,
    pub(super) file: &'static str,
    /// A piece of the file that is there once, and what takes its place.
    pub(super) from: &'static str,
    pub(super) to: &'static str,
}

impl Fault {
    /// The suites that may find it, the quickest first.
    pub(super) fn suites(&self) -> Vec<Suite> {
        if self.file.starts_with("crates/vm/") {
            vec![Suite::Simulation, Suite::Vm, Suite::VmModel]
        } else if self.file.starts_with("crates/store/") {
            vec![Suite::Store, Suite::Simulation]
        } else if self.file.starts_with("crates/fuse/") {
            vec![Suite::ParkModel]
        } else {
            vec![Suite::DriverModel, Suite::Driver]
        }
    }
}

const fn fault(
    kind: &'static str,
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
) -> Fault {
    Fault { kind, name, file, from, to }
}

const ACCOUNT: &str = "crates/vm/src/object.rs";
const BATCH: &str = "crates/vm/src/batch.rs";
const BUDGET: &str = "crates/vm/src/budget.rs";
const CHUNK: &str = "crates/vm/src/chunk.rs";
const COMPACT: &str = "crates/vm/src/compact.rs";
const EXTENT: &str = "crates/vm/src/extent.rs";
const FETCH: &str = "crates/vm/src/fetch.rs";
const HEALTH: &str = "crates/vm/src/health.rs";
const PAGEOUT: &str = "crates/vm/src/pageout.rs";
const TIER: &str = "crates/vm/src/tier.rs";
const VM: &str = "crates/vm/src/vm.rs";
const PARK: &str = "crates/fuse/src/park.rs";
const WAKE: &str = "crates/overspill/src/driver/wake.rs";

/// All of them.
pub(super) const FAULTS: &[Fault] = &[
    // Space and charges.
    fault(
        "free",
        "discarded pages stay charged to their account",
        ACCOUNT,
        "        chunk.account().uncharge(count);\n",
        "",
    ),
    fault(
        "charge",
        "credit that was not used is not returned",
        ACCOUNT,
        "            chunk.account().uncharge(credit);\n            result",
        "            result",
    ),
    fault(
        "free",
        "blocks of a dead extent are never freed",
        EXTENT,
        "            self.space.free(run);\n        }\n    }\n}\n\nfn blocks_of",
        "        }\n    }\n}\n\nfn blocks_of",
    ),
    fault(
        "charge",
        "a cluster that replaces another is counted beside it",
        TIER,
        "            self.count_out(held);\n            std::mem::replace",
        "            std::mem::replace",
    ),
    fault(
        "charge",
        "the last metadata of a chunk is not taken off",
        CHUNK,
        "        self.shared.budget.uncharge_metadata(CHUNK_COST);\n",
        "        self.shared.budget.uncharge_metadata(CHUNK_COST - 1);\n",
    ),
    fault(
        "free",
        "a fetch buffer goes to nobody who waits for one",
        FETCH,
        "            match inner.1.pop_front() {",
        "            match inner.1.pop_front().filter(|_| false) {",
    ),
    // Versions and identities.
    fault(
        "version",
        "strips of another cluster pass for the page's",
        ACCOUNT,
        "cluster.filter(|cluster| cluster.is_of(extent));\n                    match",
        "cluster;\n                    match",
    ),
    fault(
        "version",
        "an old version comes back when its write ends",
        CHUNK,
        "        let live = self.writing & set;\n        self.writing &= !set;\n        if live != 0 {",
        "        let live = self.resident & set;\n        self.writing &= !set;\n        if live != 0 {",
    ),
    fault(
        "version",
        "two clusters of a chunk are under way at once",
        PAGEOUT,
        "!chunk.is_owned() || state.is_going_out() || state.resident() == 0",
        "!chunk.is_owned() || state.resident() == 0",
    ),
    fault(
        "version",
        "a page written anew keeps its old slot",
        CHUNK,
        "        self.lost &= !bit;\n        self.forget_slots(bit);\n",
        "        self.lost &= !bit;\n",
    ),
    fault(
        "version",
        "a fork takes pages under way for clean",
        CHUNK,
        "        to.dirty = from.dirty | from.writing;",
        "        to.dirty = from.dirty;",
    ),
    fault(
        "version",
        "a write goes to a chunk that a fork shows too",
        "crates/vm/src/tree.rs",
        "                    return chunks[index(chunk, 0)].as_ref().filter(|found| found.is_unshared());",
        "                    return chunks[index(chunk, 0)].as_ref();",
    ),
    fault(
        "version",
        "pages whose write failed are taken for written",
        CHUNK,
        "        self.dirty |= self.writing & set;\n        self.writing &= !set;\n    }",
        "        self.writing &= !set;\n    }",
    ),
    fault(
        "version",
        "pages of zeros become absent",
        CHUNK,
        "        self.zero |= zeros;\n        freed",
        "        freed",
    ),
    fault(
        "version",
        "a cluster that could not leave counts as leaving",
        TIER,
        "            held.going_out = false;\n",
        "",
    ),
    // Places.
    fault(
        "offset",
        "strips are looked for at the start of their block",
        EXTENT,
        "            skip: bytes.start % BLOCK,",
        "            skip: 0,",
    ),
    fault(
        "offset",
        "clusters lie where no place can say",
        BATCH,
        "        self.used = bytes.end.next_multiple_of(EXTENT_ALIGN);",
        "        self.used = bytes.end;",
    ),
    fault(
        "offset",
        "a page is looked for at its number, not its rank",
        EXTENT,
        "        (self.pages & ((1 << page) - 1)).count_ones() as usize",
        "        page.min(self.pages.count_ones() as usize - 1)",
    ),
    // Dead bytes and damage.
    fault(
        "count",
        "pages that die in a cluster are not counted",
        EXTENT,
        "            1 => self.bury(&place, self.encoded.pages() - left.count_ones() as usize),",
        "            1 => {}",
    ),
    fault(
        "count",
        "pages that both of two forks gave up are not counted",
        EXTENT,
        "                self.bury(&place, self.dead() + (pages & before).count_ones() as usize);\n",
        "",
    ),
    fault(
        "count",
        "a segment once compacted is never looked at again",
        COMPACT,
        "        segment.let_go();\n",
        "",
    ),
    fault(
        "damage",
        "a damaged strip takes its neighbours along",
        CHUNK,
        "|set, cluster| set | cluster.live) & extent.pages_of(strip);",
        "|set, cluster| set | cluster.live) | (extent.pages_of(strip) & 0);",
    ),
    fault(
        "damage",
        "damage is believed at once",
        FETCH,
        "        let mut pauses = PAUSES.into_iter();",
        "        let mut pauses = PAUSES.into_iter().take(0);",
    ),
    fault(
        "refusal",
        "a store counts as broken at its first failure",
        HEALTH,
        "        let is_broken = now - trouble.since >= PATIENCE;",
        "        let is_broken = now >= trouble.since;",
    ),
    fault(
        "refusal",
        "waiters are refused while a helper holds the last pages",
        PAGEOUT,
        "        (self.helping.load(Ordering::Acquire) == 0).then_some((made, helped))",
        "        Some((made, helped - helped))",
    ),
    fault(
        "refusal",
        "an object without space keeps its turn",
        BATCH,
        "Tier::stays(&extent, Turn::Last)",
        "Tier::stays(&extent, Turn::First)",
    ),
    // Wake-ups of the VM.
    fault(
        "wake-up",
        "memory that comes free serves nobody",
        BUDGET,
        "        self.charged.fetch_sub(bytes, Ordering::Release);\n        self.grant();",
        "        self.charged.fetch_sub(bytes, Ordering::Release);",
    ),
    fault(
        "wake-up",
        "who waits for memory does not ask for pageout",
        BUDGET,
        "        self.grant();\n        self.kick_if_short();\n        Ok(ticket)",
        "        self.grant();\n        Ok(ticket)",
    ),
    fault(
        "wake-up",
        "a reservation that ends does not ask for pageout",
        BUDGET,
        "        if self.budget.has_waiters() {\n            self.budget.kick_if_short();\n        }",
        "",
    ),
    fault("wake-up", "nobody is told of a read", VM, "                self.signals().reads_ready();\n", ""),
    fault("wake-up", "nobody is told of a write", PAGEOUT, "        shared.signals().writes_ready();\n", ""),
    fault(
        "wake-up",
        "a fetch that ends wakes nobody",
        FETCH,
        "            wakers.into_iter().for_each(Waker::wake);",
        "            drop(wakers);",
    ),
    fault(
        "wake-up",
        "a store that failed is never tried again",
        PAGEOUT,
        "                shared.pageout_at(failure.again_at);\n",
        "",
    ),
    fault(
        "wake-up",
        "pageout rests without looking once more",
        PAGEOUT,
        "            shared.budget.short.swap(false, Ordering::AcqRel);\n            if self.wanted(shared) == 0 {\n                return Step::Rest;\n            }\n            shared.budget.short.store(true, Ordering::Release);",
        "            return Step::Rest;",
    ),
    fault(
        "wake-up",
        "a sleeper that is just due sleeps on",
        "crates/vm/src/timer.rs",
        "|sleeper| sleeper.due <= now).collect()",
        "|sleeper| sleeper.due < now).collect()",
    ),
    fault(
        "wake-up",
        "pageout does not hear that a write has ended",
        VM,
        "        // It waited for this, or has come to rest meanwhile and is asked once more than it need be.\n        self.0.signals().pageout_wanted();\n",
        "",
    ),
    fault(
        "wake-up",
        "an eager pageout does not hear of writes",
        VM,
        "        if self.pageout.eager.load(Ordering::Relaxed) {\n            self.signals().pageout_wanted();\n        }",
        "",
    ),
    // Stores.
    fault(
        "offset",
        "the file store writes a block too far",
        "crates/store/src/file/mod.rs",
        "        self.io.write(Self::offset(start), buf)",
        "        self.io.write(Self::offset(start + 1), buf)",
    ),
    fault(
        "count",
        "the file store does not see that blocks are free",
        "crates/store/src/file/mod.rs",
        "        space.allocated = space.allocated.saturating_sub(freed);\n        drop(space);",
        "        drop(space);",
    ),
    fault(
        "free",
        "punched space is forgotten",
        "crates/store/src/file/upkeep.rs",
        "        if punched.is_ok() {\n            upkeep.add(run);\n        }\n",
        "",
    ),
    fault(
        "version",
        "a file at a path is used as it is found",
        "crates/store/src/file/open.rs",
        "        Ok(_) if !force => return Err(StoreError::Exists(path.to_path_buf())),\n",
        "",
    ),
    // The driver's wake-ups.
    fault("wake-up", "an event wakes nobody", WAKE, "        self.changed.notify_one();\n", ""),
    fault(
        "wake-up",
        "a request pushed is no event",
        WAKE,
        "push_back(request);\n        self.added.set();",
        "push_back(request);",
    ),
    fault(
        "wake-up",
        "a thread goes to sleep without a second look",
        WAKE,
        "        if worker.ready() & worker.room() == 0 {\n            worker.wait",
        "        if worker.room() != 0 || worker.room() == 0 {\n            worker.wait",
    ),
    fault(
        "wake-up",
        "a full thread rings no other",
        WAKE,
        "                bells.ring(kind);\n            }\n        }\n        // A thread that makes a request",
        "            }\n        }\n        // A thread that makes a request",
    ),
    fault(
        "wake-up",
        "a bell makes no sound",
        WAKE,
        "            bell.waker.wake();\n        }\n    }\n",
        "        }\n    }\n",
    ),
    fault(
        "wake-up",
        "a thread says that it sleeps after it looked",
        WAKE,
        "        bell.sleeps(worker.room());\n        if worker.ready() & worker.room() == 0 {\n",
        "        let idle = worker.ready() & worker.room() == 0;\n        bell.sleeps(worker.room());\n        if idle {\n",
    ),
    fault(
        "wake-up",
        "of two reads held back one is forgotten",
        WAKE,
        "        (reads > u32::from(help), help && reads > 0)",
        "        (reads > 1, help && reads == 1)",
    ),
    fault(
        "wake-up",
        "pageout does not hear of space that was prepared",
        "crates/overspill/src/driver/upkeep.rs",
        "        wakeups.pageout.set();\n",
        "",
    ),
    // Parked requests.
    fault(
        "wake-up",
        "a parked read does not say whom to wake",
        PARK,
        "                    read.waker = Some(cx.waker().clone());\n",
        "                    let _ = read;\n",
    ),
    fault(
        "wake-up",
        "a read whose time is up is not woken",
        PARK,
        "            if let Some(waker) = read.waker {\n                waker.wake();\n            }\n",
        "",
    ),
    fault("wake-up", "a thread that waits in place is not woken", PARK, "        self.0.unpark();\n", ""),
    fault(
        "version",
        "a read whose time was up is answered twice",
        PARK,
        "self.reads().extract_if(|_, read| read.deadline <= now).map(|(_, read)| read).collect();",
        "self.reads().extract_if(|_, read| read.deadline > now).map(|(_, read)| read).collect();",
    ),
];
