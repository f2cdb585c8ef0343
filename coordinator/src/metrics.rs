//! Metrics of the coordinator: functions named for events.

use des_shared::job::JobState;
use des_shared::metrics::{Metrics, SECONDS};
use des_shared::queue::{QueueStats, Tick};
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

/// What became of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Submission {
    /// A new job.
    Accepted,
    /// A job that was there.
    Known,
    /// An error.
    Refused,
}

/// The coordinator's own metrics.
#[derive(Clone, Debug)]
pub(crate) struct CoordinatorMetrics {
    submissions: IntCounterVec,
    manifest_bytes: IntCounter,
    planning: Histogram,
    planned_files: IntCounter,
    planned_tasks: IntCounter,
    ended: IntCounterVec,
    open_jobs: IntGaugeVec,
    tasks: IntGaugeVec,
    oldest: Gauge,
    workers: IntGauge,
    worker_slots: IntGauge,
    leases_expired: IntCounter,
    tasks_died: IntCounter,
    retries: IntCounter,
    restored: IntCounter,
    refused_ends: IntCounter,
    pressure: IntCounter,
    uploads_aborted: IntCounter,
    jobs_removed: IntCounter,
    findings: IntCounterVec,
    requests: IntCounterVec,
    requests_in_flight: IntGauge,
}

/// One request under way; ends when dropped, also when the client goes away.
#[derive(Debug)]
pub(crate) struct RequestInFlight(IntGauge);

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl CoordinatorMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let opts = |name: &str, help: &str| Opts::new(name, help);
        let counter = |name, help| metrics.register(IntCounter::with_opts(opts(name, help)).expect("a literal name"));
        let gauge = |name, help| metrics.register(IntGauge::with_opts(opts(name, help)).expect("a literal name"));
        let counters = |name, help, label| {
            metrics.register(IntCounterVec::new(opts(name, help), &[label]).expect("a literal name"))
        };
        let gauges =
            |name, help, label| metrics.register(IntGaugeVec::new(opts(name, help), &[label]).expect("a literal name"));
        let planning = HistogramOpts::new("des_planning_seconds", "Time from manifest to queued tasks")
            .buckets(SECONDS.iter().copied().chain([300.0, 1800.0]).collect());
        Self {
            submissions: counters("des_submissions_total", "Submissions by what became of them", "outcome"),
            manifest_bytes: counter("des_manifest_bytes_total", "Bytes of manifests taken in"),
            planning: metrics.register(Histogram::with_opts(planning).expect("a literal name")),
            planned_files: counter("des_planned_files_total", "Files of planned jobs"),
            planned_tasks: counter("des_planned_tasks_total", "Tasks of planned jobs"),
            ended: counters("des_jobs_ended_total", "Jobs ended by this process, by final state", "state"),
            open_jobs: gauges("des_jobs_open", "Open jobs; 0 unless this process reconciles", "state"),
            tasks: gauges("des_queue_tasks", "Tasks of open jobs by state", "state"),
            oldest: metrics.register(
                Gauge::with_opts(opts("des_queue_oldest_seconds", "Age of the task that has waited longest"))
                    .expect("a literal name"),
            ),
            workers: gauge("des_workers", "Workers that sent a heartbeat lately"),
            worker_slots: gauge("des_worker_slots", "Slots of these workers"),
            leases_expired: counter("des_leases_expired_total", "Leases that ran out"),
            tasks_died: counter("des_tasks_died_total", "Tasks given up because their leases ran out"),
            retries: counter("des_task_retries_total", "Delayed tasks that wait for a worker again"),
            restored: counter("des_jobs_restored_total", "Times a job's tasks were brought (back) into the queue"),
            refused_ends: counter(
                "des_job_ends_refused_total",
                "Jobs that could not be ended because packed + failed is not accepted",
            ),
            pressure: counter("des_submissions_refused_full_total", "Submissions refused because too much waits"),
            uploads_aborted: counter(
                "des_uploads_aborted_total",
                "Unfinished uploads dropped: of dead and cancelled tasks, and orphans",
            ),
            jobs_removed: counter("des_jobs_removed_total", "Ended jobs whose records were removed by retention"),
            findings: counters("des_audit_findings_total", "Findings of the auditor by kind", "kind"),
            requests: metrics.register(
                IntCounterVec::new(
                    opts("des_http_requests_total", "Requests by route and status"),
                    &["route", "status"],
                )
                .expect("a literal name"),
            ),
            requests_in_flight: gauge("des_http_requests_in_flight", "Requests under way"),
        }
    }

    pub(crate) fn submitted(&self, outcome: Submission, manifest_bytes: u64) {
        let label = match outcome {
            Submission::Accepted => "accepted",
            Submission::Known => "known",
            Submission::Refused => "refused",
        };
        self.submissions.with_label_values(&[label]).inc();
        self.manifest_bytes.inc_by(manifest_bytes);
    }

    pub(crate) fn planned(&self, files: u64, tasks: u64, seconds: f64) {
        self.planned_files.inc_by(files);
        self.planned_tasks.inc_by(tasks);
        self.planning.observe(seconds);
    }

    pub(crate) fn job_ended(&self, state: JobState) {
        let label = match state {
            JobState::Completed => "completed",
            JobState::CompletedWithErrors => "completed_with_errors",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
            JobState::Planning | JobState::Running | JobState::Paused => "open",
        };
        self.ended.with_label_values(&[label]).inc();
    }

    pub(crate) fn jobs_are_open(&self, planning: u64, running: u64) {
        self.open_jobs.with_label_values(&["planning"]).set(planning.cast_signed());
        self.open_jobs.with_label_values(&["running"]).set(running.cast_signed());
    }

    pub(crate) fn queue_is(&self, stats: &QueueStats) {
        let counts =
            [("pending", stats.pending), ("delayed", stats.delayed), ("leased", stats.leased), ("dead", stats.dead)];
        for (state, count) in counts {
            self.tasks.with_label_values(&[state]).set(count.cast_signed());
        }
        self.oldest.set(stats.oldest_pending_age_ms as f64 / 1000.0);
    }

    pub(crate) fn workers_are(&self, workers: u64, slots: u64) {
        self.workers.set(workers.cast_signed());
        self.worker_slots.set(slots.cast_signed());
    }

    pub(crate) fn ticked(&self, tick: &Tick) {
        self.leases_expired.inc_by(tick.expired.len() as u64 + tick.died.len() as u64);
        self.tasks_died.inc_by(tick.died.len() as u64);
        self.retries.inc_by(tick.revived);
    }

    pub(crate) fn request_began(&self) -> RequestInFlight {
        self.requests_in_flight.inc();
        RequestInFlight(self.requests_in_flight.clone())
    }

    /// `route` is the pattern of the route, never the path: ids must not become labels.
    pub(crate) fn request_answered(&self, route: &str, status: u16) {
        self.requests.with_label_values(&[route, &status.to_string()]).inc();
    }

    pub(crate) fn job_restored(&self) {
        self.restored.inc();
    }

    pub(crate) fn refused_for_pressure(&self) {
        self.pressure.inc();
    }

    pub(crate) fn uploads_aborted(&self, uploads: u64) {
        self.uploads_aborted.inc_by(uploads);
    }

    pub(crate) fn job_removed(&self) {
        self.jobs_removed.inc();
    }

    /// `kind` is one of a fixed set of words.
    pub(crate) fn found(&self, kind: &str) {
        self.findings.with_label_values(&[kind]).inc();
    }

    pub(crate) fn end_refused(&self) {
        self.refused_ends.inc();
    }
}
