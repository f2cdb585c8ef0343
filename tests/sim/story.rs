//! One run: jobs come in, faults happen, faults end, everything is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use des_shared::clock::Clock;
use des_shared::ids::{JobId, TaskId};
use des_shared::layout;
use des_shared::queue::Queue;
use des_shared::queue::memory::Snapshot;
use des_shared::store::ObjectStore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::checks;
use crate::client::{Submission, order, submit};
use crate::ledger::Grant;
use crate::net::{Odds, Target};
use crate::world::{LEASE, World, content};

/// How long everything may take to come to its end once the faults are over.
const PATIENCE: Duration = Duration::from_mins(30);

/// The queue at an earlier moment.
struct Past {
    queue: Snapshot,
    grants: BTreeMap<TaskId, Grant>,
    held_back: BTreeSet<JobId>,
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    /// Over every call that was carried out, in order, with its time.
    pub(crate) hash: u64,
    pub(crate) events: u64,
    pub(crate) faults: u64,
    pub(crate) jobs: usize,
    pub(crate) files: u64,
    pub(crate) failed_files: u64,
    pub(crate) shards: usize,
    pub(crate) resumed: usize,
    pub(crate) claims: usize,
    pub(crate) kills: u64,
    pub(crate) log: Vec<String>,
}

/// Runs one seed.
pub(crate) fn run(seed: u64, keep_log: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(Story::tell(seed, keep_log))
}

struct Story {
    world: Arc<World>,
    past: Option<Past>,
    kills: u64,
    harsh: u64,
}

impl Story {
    async fn tell(seed: u64, keep_log: bool) -> Outcome {
        let world = World::new(seed, keep_log).await;
        let harsh = world.dice.up_to(3);
        let mut story = Self { world, past: None, kills: 0, harsh };
        let submissions = story.act().await;
        story.calm_down().await;
        let sums = story.come_to_an_end(submissions).await;
        let world = story.world;
        let facts = world.net.ledger.facts();
        let (violations, events, log) = (facts.violations.clone(), facts.events, facts.log.clone());
        let claims = facts.claims.len();
        drop(facts);
        Outcome {
            violations,
            hash: world.net.ledger.hash(),
            events,
            faults: world.net.faults(),
            jobs: sums.jobs,
            files: sums.files,
            failed_files: sums.failed,
            shards: sums.shards,
            resumed: sums.resumed,
            claims,
            kills: story.kills,
            log: log.unwrap_or_default(),
        }
    }

    fn chance(&self, one_in: u64) -> bool {
        self.world.dice.up_to(one_in - 1) == 0
    }

    fn odds(&self) -> Odds {
        let dice = &self.world.dice;
        match self.harsh {
            0 => Odds::default(),
            1 => Odds { lost_answer: 5, slow: 2, ..Odds::default() },
            2 => Odds { refused: 10, lost: 10, lost_answer: 15, twice: 10, slow: 5 },
            _ => Odds {
                refused: dice.up_to(60),
                lost: dice.up_to(40),
                lost_answer: dice.up_to(60),
                twice: dice.up_to(40),
                slow: dice.up_to(20),
            },
        }
    }

    /// Jobs come in while faults happen.
    async fn act(&mut self) -> (Vec<Arc<Submission>>, JoinSet<()>) {
        let world = Arc::clone(&self.world);
        for _ in 0..=world.dice.up_to(1) {
            world.start_coordinator();
        }
        for _ in 0..=world.dice.up_to(2) {
            world.start_worker(self.chance(4)).await;
        }
        world.net.set_odds(self.odds());
        let (mut submissions, mut clients) = (Vec::new(), JoinSet::new());
        world.net.set_pace(Duration::from_millis([20, 100, 300, 600][world.dice.up_to(3) as usize]));
        let end = Instant::now() + Duration::from_secs(20 + world.dice.up_to(100));
        let (jobs, pause) = (1 + world.dice.up_to(2), 1000 + world.dice.up_to(3000));
        while Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(world.dice.up_to(pause))).await;
            if (submissions.len() as u64) < jobs && self.chance(3) {
                let submission = Arc::new(Submission::draw(&world, submissions.len() as u64));
                submissions.push(Arc::clone(&submission));
                clients.spawn(submit(Arc::clone(&world), submission));
            } else if self.chance(12) && !submissions.is_empty() {
                // The same again: at the same moment, or later.
                let again = Arc::clone(&submissions[world.dice.up_to(submissions.len() as u64 - 1) as usize]);
                clients.spawn(submit(Arc::clone(&world), again));
            } else if self.chance(6) {
                self.order(&submissions, &mut clients);
            } else {
                self.fault().await;
            }
            self.remember();
            self.audit().await;
        }
        (submissions, clients)
    }

    /// Something goes wrong.
    async fn fault(&mut self) {
        let world = Arc::clone(&self.world);
        let dice = &world.dice;
        match dice.up_to(18) {
            0..=2 => {
                self.kills += u64::from(world.kill_worker(|_| true));
                world.start_worker(self.chance(4)).await;
            }
            3 => {
                self.kills += 1;
                world.kill_coordinator();
                world.start_coordinator();
            }
            4..=6 => self.freeze(),
            7 => self.stop_worker().await,
            8 => {
                world.net.event(format_args!("the queue loses everything"));
                world.queue.lose_everything();
                world.net.ledger.forgotten(None);
            }
            9 | 10 => self.outage(),
            11 | 12 => self.cut(),
            13 | 14 => self.drop_upload().await,
            15 => self.spoil_source().await,
            16 => {
                if world.coordinator_count() > 1 {
                    self.kills += 1;
                    world.kill_coordinator();
                } else {
                    world.start_coordinator();
                }
            }
            17 => self.go_back(),
            _ => self.stop_coordinator(),
        }
    }

    /// A decision about some job.
    fn order(&self, submissions: &[Arc<Submission>], clients: &mut JoinSet<()>) {
        let (world, dice) = (Arc::clone(&self.world), &self.world.dice);
        let jobs: Vec<JobId> = submissions.iter().flat_map(|submission| submission.told()).collect();
        let Some(last) = jobs.len().checked_sub(1) else { return };
        let job = jobs[dice.up_to(last as u64) as usize];
        let wanted = match dice.up_to(13) {
            0..=3 => "pause".to_owned(),
            4..=7 => "resume".to_owned(),
            8 => "cancel".to_owned(),
            9 => {
                world.net.ledger.facts().may_delete = true;
                "cancel?shards=drop".to_owned()
            }
            10 | 11 => "retry".to_owned(),
            _ => format!("share {{\"priority\": {}, \"max_running\": {}}}", dice.up_to(3), 1 + dice.up_to(2)),
        };
        clients.spawn(async move { while !order(&world, job, &wanted).await && world.dice.up_to(2) > 0 {} });
    }

    /// The queue as it is now may come back later.
    fn remember(&mut self) {
        if self.past.is_none() || self.chance(2) {
            let facts = self.world.net.ledger.facts();
            let (grants, held_back) = (facts.grants.clone(), facts.held_back.clone());
            self.past = Some(Past { queue: self.world.queue.snapshot(), grants, held_back });
        }
    }

    /// A Redis comes back with older data.
    fn go_back(&self) {
        if let Some(past) = &self.past {
            self.world.net.event(format_args!("the queue goes back in time"));
            self.world.queue.go_back_to(&past.queue);
            self.world.net.ledger.went_back(past.grants.clone(), past.held_back.clone());
        }
    }

    /// SIGSTOP, and SIGCONT later: often after the leases ran out.
    fn freeze(&self) {
        let (world, nodes) = (&self.world, self.world.nodes());
        if nodes.is_empty() {
            return;
        }
        let node = Arc::clone(&nodes[world.dice.up_to(nodes.len() as u64 - 1) as usize]);
        let wait = Duration::from_millis(world.dice.up_to(40_000));
        world.net.event(format_args!("{} freezes for {wait:?}", node.name));
        node.freeze(true);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            node.freeze(false);
        });
    }

    /// SIGTERM to a worker.
    async fn stop_worker(&self) {
        if let Some(process) = self.world.take_worker(|_| true) {
            self.world.net.event(format_args!("{} is told to stop", process.node.name));
            process.shutdown.begin();
            tokio::spawn(async move {
                // A frozen or cut off one takes longer than its grace period, and is killed then.
                let _stopped = tokio::time::timeout(Duration::from_secs(10), process.running.join()).await;
                process.node.die();
            });
        }
        self.world.start_worker(self.chance(4)).await;
    }

    /// SIGTERM to a coordinator.
    fn stop_coordinator(&self) {
        if let Some(process) = self.world.take_coordinator() {
            self.world.net.event(format_args!("{} is told to stop", process.node.name));
            process.shutdown.begin();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(5)).await;
                process.node.die();
                drop(process.embedded);
            });
        }
        self.world.start_coordinator();
    }

    /// A server is away for a while.
    fn outage(&self) {
        let target = Target::ALL[self.world.dice.up_to(3) as usize];
        let wait = Duration::from_millis(self.world.dice.up_to(25_000));
        let net = Arc::clone(&self.world.net);
        net.event(format_args!("{target:?} is away for {wait:?}"));
        net.set_away(target, true);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            net.set_away(target, false);
        });
    }

    /// A process cannot reach one server for a while.
    fn cut(&self) {
        let (world, nodes) = (&self.world, self.world.nodes());
        if nodes.is_empty() {
            return;
        }
        let node = Arc::clone(&nodes[world.dice.up_to(nodes.len() as u64 - 1) as usize]);
        let target = Target::ALL[world.dice.up_to(3) as usize];
        let wait = Duration::from_millis(world.dice.up_to(40_000));
        world.net.event(format_args!("{} cannot reach {target:?} for {wait:?}", node.name));
        node.set_cut(target, true);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            node.set_cut(target, false);
        });
    }

    /// A multipart upload vanishes, as a bucket's lifecycle rule makes it.
    async fn drop_upload(&self) {
        let uploads = self.world.zone.uploads();
        let Some(last) = uploads.len().checked_sub(1) else { return };
        let (key, id) = &uploads[self.world.dice.up_to(last as u64) as usize];
        self.world.net.event(format_args!("the upload {id} of {key} vanishes"));
        self.world.zone.abort_upload(key, id).await.expect("a store in memory");
    }

    /// A source vanishes, shrinks, grows, or becomes another of the same size.
    async fn spoil_source(&self) {
        let (world, dice) = (&self.world, &self.world.dice);
        let file = &world.files[dice.up_to(world.files.len() as u64 - 1) as usize];
        let new = match dice.up_to(3) {
            0 => None,
            1 => Some(content(dice, file.size / 2)),
            2 => Some(content(dice, file.size + 1 + dice.up_to(100))),
            _ => Some(content(dice, file.size)),
        };
        world.net.event(format_args!("{} is now {:?} bytes", file.key, new.as_ref().map(Bytes::len)));
        world.write_source(&file.key, new).await;
    }

    /// What the queue's auditor says at this moment.
    async fn audit(&self) {
        let found = Queue::audit(&*self.world.queue).await.expect("a queue in memory");
        for text in found {
            self.world.net.ledger.violation(format!("audit: {text}"));
        }
    }

    /// Every fault ends; there is at least one sane process of each kind.
    async fn calm_down(&mut self) {
        let world = &self.world;
        world.net.event(format_args!("the faults end"));
        world.net.set_odds(Odds::default());
        world.net.set_pace(Duration::from_millis(20));
        for target in Target::ALL {
            world.net.set_away(target, false);
        }
        for node in world.nodes() {
            node.freeze(false);
            for target in Target::ALL {
                node.set_cut(target, false);
            }
        }
        while world.kill_worker(|process| process.deluded) {}
        if world.worker_count() == 0 {
            world.start_worker(false).await;
        }
        if world.coordinator_count() == 0 {
            world.start_coordinator();
        }
        // What is paused would never end.
        for (job, ended) in known_jobs(world) {
            while !ended && !order(world, job, "resume").await {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// Waits for the end of every job and checks everything.
    async fn come_to_an_end(&self, (submissions, mut clients): (Vec<Arc<Submission>>, JoinSet<()>)) -> checks::Sums {
        let (world, ledger) = (&self.world, &self.world.net.ledger);
        let calm_since = Instant::now();
        let mut open = usize::MAX;
        while open > 0 || !clients.is_empty() {
            if calm_since.elapsed() > PATIENCE {
                ledger.violation(format!("{open} jobs did not end within {PATIENCE:?} of calm"));
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            while let Some(ended) = clients.try_join_next() {
                if let Err(e) = ended {
                    ledger.violation(format!("a client panicked: {e}"));
                }
            }
            self.audit().await;
            // A stop that is under way may still undo itself.
            for node in world.nodes() {
                node.freeze(false);
            }
            if calm_since.elapsed() > LEASE * 3 {
                self.check_leases();
            }
            let jobs = known_jobs(world);
            if clients.is_empty() && calm_since.elapsed().as_secs().is_multiple_of(20) {
                // An order that was under way may have paused it again.
                for (job, _) in jobs.iter().filter(|(_, ended)| !**ended) {
                    order(world, *job, "resume").await;
                }
            }
            open = jobs.values().filter(|ended| !**ended).count();
        }
        // What is tidied up after an end.
        tokio::time::sleep(Duration::from_mins(1)).await;
        self.audit().await;
        checks::check(world, &submissions, open == 0).await
    }

    /// Whoever holds a lease has renewed it lately: another could have it within the lease and five seconds.
    fn check_leases(&self) {
        let (now, bound) = (self.world.net.clock.now_ms(), (LEASE + Duration::from_secs(5)).as_millis() as u64);
        let grants = self.world.net.ledger.facts().grants.clone();
        for (task, grant) in grants {
            if grant.held && !grant.finished && now.saturating_sub(grant.renewed_ms) > bound {
                let text = format!("task {task}: its lease was renewed {} ms ago", now - grant.renewed_ms);
                self.world.net.ledger.violation(text);
            }
        }
    }
}

/// Every job there is, and whether it has ended.
pub(crate) fn known_jobs(world: &World) -> BTreeMap<JobId, bool> {
    let objects = world.state.objects();
    let records = objects.keys().filter(|key| key.starts_with(layout::JOBS_PREFIX) && key.ends_with("/job.json"));
    let jobs = records.filter_map(|key| layout::job_of_key(key));
    jobs.map(|job| (job, objects.contains_key(&layout::end(job)))).collect()
}
