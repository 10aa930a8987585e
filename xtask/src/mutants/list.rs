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
            Suite::Driver => test(&["overspill-runtime", "--lib", "--tests"], &[]),
            Suite::DriverModel => test(&["overspill-runtime", "--features", "shuttle", "--lib"], &["model"]),
            Suite::ParkModel => {
                test(&["overspill-mount", "--features", "shuttle", "--lib"], &["park::model"])
            }
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
        } else if self.file.starts_with("crates/mount/") {
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

const SEGMENT: &str = "crates/vm/src/memory/segment.rs";
const BATCH: &str = "crates/vm/src/pageout/batch.rs";
const BUDGET: &str = "crates/vm/src/budget.rs";
const CHUNK: &str = "crates/vm/src/memory/chunk.rs";
const COMPACT: &str = "crates/vm/src/pageout/compact.rs";
const COMPRESSED: &str = "crates/vm/src/memory/compressed.rs";
const DAEMON: &str = "crates/vm/src/pageout/daemon.rs";
const EVICT: &str = "crates/vm/src/pageout/evict.rs";
const EXTENT: &str = "crates/vm/src/memory/extent.rs";
const FETCH: &str = "crates/vm/src/pagein/fetch.rs";
const GROUND: &str = "crates/vm/src/memory/ground.rs";
const HEALTH: &str = "crates/vm/src/memory/health.rs";
const HERE: &str = "crates/runtime/src/here.rs";
const LOOK: &str = "crates/vm/src/object/read.rs";
const PAGER: &str = "crates/vm/src/pager.rs";
const PARK: &str = "crates/mount/src/park.rs";
const REVOKE: &str = "crates/vm/src/revoke.rs";
const SERVICE: &str = "crates/vm/src/pagein/service.rs";
const SLOTS: &str = "crates/vm/src/pagein/slots.rs";
const STATE: &str = "crates/vm/src/memory/state.rs";
const PAGEOUT_STATE: &str = "crates/vm/src/pageout/state.rs";
const WAKE: &str = "crates/runtime/src/wake.rs";
const WRITE: &str = "crates/vm/src/object/write.rs";
const WRITE_OUT: &str = "crates/vm/src/pageout/write_out.rs";

/// All of them.
pub(super) const FAULTS: &[Fault] = &[
    // Space and charges.
    fault(
        "free",
        "discarded pages stay charged to their account",
        WRITE,
        "        chunk.account().uncharge(count);\n",
        "",
    ),
    fault(
        "charge",
        "credit that was not used is not returned",
        WRITE,
        "            chunk.account().uncharge(credit);\n            result",
        "            result",
    ),
    fault(
        "free",
        "blocks of a dead extent are never freed",
        SEGMENT,
        "            self.backing.free(run);\n",
        "",
    ),
    fault(
        "charge",
        "a cluster that replaces another is counted beside it",
        COMPRESSED,
        "            self.count_out(payload);\n            std::mem::replace",
        "            std::mem::replace",
    ),
    fault(
        "charge",
        "the last metadata of a chunk is not taken off",
        CHUNK,
        "        self.memory.budget.uncharge_metadata(CHUNK_COST);\n",
        "        self.memory.budget.uncharge_metadata(CHUNK_COST - 1);\n",
    ),
    fault(
        "free",
        "a fetch buffer goes to nobody who waits for one",
        SLOTS,
        "            match inner.1.pop_front() {",
        "            match inner.1.pop_front().filter(|_| false) {",
    ),
    // Versions and identities.
    fault(
        "version",
        "strips of another cluster pass for the page's",
        LOOK,
        "match here.filter(|base| base.origin.is_extent(extent)) {",
        "match here {",
    ),
    fault(
        "version",
        "an old version comes back when its write ends",
        STATE,
        "        let live = self.writing() & set;\n",
        "        let live = self.resident() & set;\n",
    ),
    fault(
        "version",
        "two clusters of a chunk are under way at once",
        EVICT,
        "!chunk.is_owned() || state.is_going_out() || state.resident() == 0",
        "!chunk.is_owned() || state.resident() == 0",
    ),
    fault(
        "version",
        "a page written anew keeps its old slot",
        STATE,
        "        self.states.set(bit, State::Dirty);\n        self.forget_copies(bit);\n",
        "        self.states.set(bit, State::Dirty);\n",
    ),
    fault(
        "version",
        "a fork takes pages under way for clean",
        CHUNK,
        "        to.states.set(from.states.all(State::Writing), State::Dirty);\n",
        "        to.states.set(from.states.all(State::Writing), State::Clean);\n",
    ),
    fault(
        "version",
        "a write goes to a chunk that a fork shows too",
        "crates/vm/src/object/tree.rs",
        "                    return chunks[index(chunk, 0)].as_ref().filter(|found| found.is_unshared());",
        "                    return chunks[index(chunk, 0)].as_ref();",
    ),
    fault(
        "version",
        "pages whose write failed are taken for written",
        STATE,
        "        self.states.set(self.writing() & set, State::Dirty);\n",
        "        self.states.set(self.writing() & set, State::Clean);\n",
    ),
    fault(
        "version",
        "pages of zeros become absent",
        STATE,
        "        self.states.set(zeros, State::Zero);\n",
        "",
    ),
    fault(
        "version",
        "a cluster that could not leave counts as leaving",
        COMPRESSED,
        "            payload.going_out = false;\n",
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
        "            1 => self.bury(&location, self.encoded.pages() - left.count_ones() as usize),",
        "            1 => {}",
    ),
    fault(
        "count",
        "pages that both of two forks gave up are not counted",
        EXTENT,
        "                self.bury(&location, self.dead() + (pages & before).count_ones() as usize);\n",
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
        STATE,
        "|set, cluster| set | cluster.live) & extent.pages_of(strip);",
        "|set, cluster| set | cluster.live) | (extent.pages_of(strip) & 0);",
    ),
    fault(
        "damage",
        "damage is believed at once",
        SERVICE,
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
        PAGEOUT_STATE,
        "        (self.helping.load(Ordering::Acquire) == 0).then_some(Quiet { reservations, turns })",
        "        Some(Quiet { reservations, turns: turns - turns })",
    ),
    fault(
        "refusal",
        "an object without space keeps its turn",
        BATCH,
        "memory.compressed.stays(&extent, Turn::Last)",
        "memory.compressed.stays(&extent, Turn::First)",
    ),
    // Several stores, sources, leases.
    fault(
        "place",
        "a read goes to the first store whatever its place",
        EXTENT,
        "            start: Place { store: segment.backing.id,",
        "            start: Place { store: StoreId(0),",
    ),
    fault(
        "version",
        "an untouched chunk of a source is taken for a hole",
        WRITE,
        "                None => self.sourced(piece.chunk) & 1 << page != 0,",
        "                None => false,",
    ),
    fault(
        "version",
        "a chunk that is made new forgets its source",
        "crates/vm/src/object/mod.rs",
        "                chunk.lock().begin_sourced(self.sourced(number));\n",
        "",
    ),
    fault(
        "free",
        "a run that must be freed whole is freed in parts",
        SEGMENT,
        "        if !self.frees_parts() {",
        "        if !self.frees_parts() && is_last {",
    ),
    fault(
        "refusal",
        "memory on lease is not asked for before waiters are refused",
        REVOKE,
        "                lease.lessee.revoke(part);\n",
        "",
    ),
    fault(
        "charge",
        "memory given back from a lease stays charged",
        "crates/vm/src/lease.rs",
        "        self.budget.end_lease(given);\n",
        "        let _ = given;\n",
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
    fault(
        "wake-up",
        "nobody is told of a read",
        SERVICE,
        "                self.memory.driver.get().reads_ready();\n",
        "",
    ),
    fault(
        "wake-up",
        "nobody is told of a read from a source",
        SERVICE,
        "                self.memory.driver.get().fills_ready();\n",
        "",
    ),
    fault(
        "wake-up",
        "nobody is told of a write",
        WRITE_OUT,
        "        self.memory.driver.get().writes_ready();\n",
        "",
    ),
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
        WRITE_OUT,
        "            self.memory.pageout_at(failure.again_at);\n",
        "",
    ),
    fault(
        "wake-up",
        "pageout rests without looking once more",
        DAEMON,
        "            budget.short.swap(false, Ordering::AcqRel);\n            if self.wanted() == 0 {\n                return Step::Rest;\n            }\n            budget.short.store(true, Ordering::Release);",
        "            return Step::Rest;",
    ),
    fault(
        "wake-up",
        "a sleeper that is just due sleeps on",
        "crates/vm/src/wait/timer.rs",
        "|sleeper| sleeper.due <= now).collect()",
        "|sleeper| sleeper.due < now).collect()",
    ),
    fault(
        "wake-up",
        "pageout does not hear that a write has ended",
        PAGER,
        "        // Pageout waited for this write, or rests and is asked once more than necessary.\n        self.memory().driver.get().pageout_wanted();\n",
        "",
    ),
    fault(
        "wake-up",
        "an eager pageout does not hear of writes",
        GROUND,
        "        if self.is_eager() {\n            self.driver.get().pageout_wanted();\n        }",
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
        "crates/runtime/src/upkeep.rs",
        "        wakeups.pageout.set();\n",
        "",
    ),
    // Parked requests.
    fault(
        "wake-up",
        "a parked read does not say whom to wake",
        PARK,
        "                    parked.waker = Some(cx.waker().clone());\n",
        "                    let _ = parked;\n",
    ),
    fault(
        "wake-up",
        "a read whose time is up is not woken",
        PARK,
        "        if let Some(waker) = self.waker {\n            waker.wake();\n        }\n",
        "",
    ),
    fault("wake-up", "a thread that waits in place is not woken", HERE, "        self.0.unpark();\n", ""),
    fault(
        "version",
        "a read whose time was up is answered twice",
        PARK,
        "self.parked().extract_if(|_, parked| parked.deadline <= now).map(|(_, parked)| parked).collect();",
        "self.parked().extract_if(|_, parked| parked.deadline > now).map(|(_, parked)| parked).collect();",
    ),
];
