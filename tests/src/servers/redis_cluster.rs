//! A real Redis Cluster: three masters, and one replica of the master that a key belongs to.

use std::time::Duration;

use redis::RedisResult;
use tokio::time::Instant;

use super::redis::not_started;
use super::{Redis, RedisOptions, ServerError};

const MASTERS: usize = 3;
const SLOTS: u16 = 16_384;
const READY_WITHIN: Duration = Duration::from_secs(40);

/// A running cluster; it ends when it is dropped.
#[derive(Debug)]
pub struct RedisCluster {
    /// The masters first, then the replica.
    pub nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts three masters that share the slots, and a replica of the one that has `key`.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start(key: &str) -> Result<Self, ServerError> {
        let extra = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--repl-diskless-sync-delay", "0"];
        let extra = extra.map(str::to_owned).to_vec();
        let mut nodes = Vec::new();
        for _ in 0..=MASTERS {
            nodes.push(Redis::start_with(RedisOptions { extra: extra.clone(), ..RedisOptions::default() }).await?);
        }
        let cluster = Self { nodes };
        cluster.join(key).await.map_err(|error| not_started(error.to_string(), String::new()))?;
        Ok(cluster)
    }

    async fn join(&self, key: &str) -> RedisResult<()> {
        let per_master = usize::from(SLOTS).div_ceil(MASTERS);
        for (index, node) in self.nodes.iter().enumerate() {
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]).await?;
            if index < MASTERS {
                let last = ((index + 1) * per_master).min(usize::from(SLOTS)) - 1;
                let first = (index * per_master).to_string();
                node.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last.to_string()]).await?;
            }
            let port = self.nodes[0].port().to_string();
            node.command(&["CLUSTER", "MEET", "127.0.0.1", &port]).await?;
        }
        self.settled(|text| text.lines().count() == MASTERS + 1 && !text.contains("handshake")).await?;
        let owner = self.owner(key).await?;
        let id = self.id(owner).await?;
        self.nodes[MASTERS].command(&["CLUSTER", "REPLICATE", &id]).await?;
        self.settled(|text| text.lines().any(|line| line.contains("slave") && line.contains(&id))).await?;
        // A replica that has not heard from its master yet could not stand in for it.
        self.wait(&self.nodes[MASTERS], &["INFO", "replication"], |text| text.contains("master_link_status:up")).await
    }

    /// URL of the cluster that names only these nodes.
    pub fn url(&self, nodes: &[usize]) -> String {
        let hosts: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", self.nodes[*node].port())).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// Which of the nodes has the key's slot, as the first node that answers sees it.
    ///
    /// # Errors
    /// What the nodes say.
    pub async fn owner(&self, key: &str) -> RedisResult<usize> {
        let mut last = Err(std::io::Error::other("no node answers").into());
        for node in &self.nodes {
            match owner_by(node, key).await {
                Ok(port) => {
                    let found = self.nodes.iter().position(|node| node.port() == port);
                    return found.ok_or_else(|| std::io::Error::other(format!("port {port} is nobody's")).into());
                }
                Err(error) => last = Err(error),
            }
        }
        last
    }

    /// A master that does not have the key's slot.
    ///
    /// # Errors
    /// What the nodes say.
    pub async fn another(&self, key: &str) -> RedisResult<usize> {
        let owner = self.owner(key).await?;
        Ok((0..MASTERS).find(|node| *node != owner).unwrap_or_default())
    }

    /// Begins to move the key's slot from its owner to `to`.
    ///
    /// # Errors
    /// What the nodes say.
    pub async fn begin_migration(&self, key: &str, to: usize) -> RedisResult<()> {
        let (slot, from) = (slot_of(&self.nodes[0], key).await?, self.owner(key).await?);
        let (from_id, to_id) = (self.id(from).await?, self.id(to).await?);
        self.nodes[to].command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await?;
        self.nodes[from].command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await.map(drop)
    }

    /// Moves up to `count` keys of the slot. Returns how many were moved.
    ///
    /// # Errors
    /// What the nodes say.
    pub async fn migrate_keys(&self, key: &str, to: usize, count: usize) -> RedisResult<usize> {
        let (slot, from) = (slot_of(&self.nodes[0], key).await?, self.owner(key).await?);
        let answer = self.nodes[from].command(&["CLUSTER", "GETKEYSINSLOT", &slot, &count.to_string()]).await?;
        let keys: Vec<String> = redis::from_redis_value(answer)?;
        if !keys.is_empty() {
            let port = self.nodes[to].port().to_string();
            let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            words.extend(keys.iter().map(String::as_str));
            self.nodes[from].command(&words).await?;
        }
        Ok(keys.len())
    }

    /// Ends the migration: the slot is `to`'s.
    ///
    /// # Errors
    /// What the nodes say.
    pub async fn end_migration(&self, key: &str, to: usize) -> RedisResult<()> {
        let (slot, from) = (slot_of(&self.nodes[0], key).await?, self.owner(key).await?);
        let to_id = self.id(to).await?;
        for node in [to, from] {
            self.nodes[node].command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await?;
        }
        Ok(())
    }

    async fn id(&self, node: usize) -> RedisResult<String> {
        Ok(redis::from_redis_value(self.nodes[node].command(&["CLUSTER", "MYID"]).await?)?)
    }

    /// Waits until every node sees a working cluster of which `holds` is true (of CLUSTER NODES).
    async fn settled(&self, holds: impl Fn(&str) -> bool) -> RedisResult<()> {
        for node in &self.nodes {
            self.wait(node, &["CLUSTER", "INFO"], |text| text.contains("cluster_state:ok")).await?;
            self.wait(node, &["CLUSTER", "NODES"], &holds).await?;
        }
        Ok(())
    }

    async fn wait(&self, node: &Redis, question: &[&str], holds: impl Fn(&str) -> bool) -> RedisResult<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let text: String = redis::from_redis_value(node.command(question).await?)?;
            if holds(&text) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(std::io::Error::other(format!("{question:?} still says {text}")).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn slot_of(node: &Redis, key: &str) -> RedisResult<String> {
    let slot: u16 = redis::from_redis_value(node.command(&["CLUSTER", "KEYSLOT", key]).await?)?;
    Ok(slot.to_string())
}

/// Port of the owner of the key's slot: the line of CLUSTER NODES whose ranges have it.
async fn owner_by(node: &Redis, key: &str) -> RedisResult<u16> {
    let slot: u16 = slot_of(node, key).await?.parse().unwrap_or(SLOTS);
    let nodes: String = redis::from_redis_value(node.command(&["CLUSTER", "NODES"]).await?)?;
    for line in nodes.lines().filter(|line| line.contains("master") && !line.contains("fail")) {
        let fields: Vec<&str> = line.split(' ').collect();
        let has = fields.iter().skip(8).any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let bounds = first.parse::<u16>().ok().zip(last.parse::<u16>().ok());
            bounds.is_some_and(|(first, last)| (first..=last).contains(&slot))
        });
        let port = fields.get(1).and_then(|text| text.split('@').next()?.rsplit_once(':')?.1.parse().ok());
        if let (true, Some(port)) = (has, port) {
            return Ok(port);
        }
    }
    Err(std::io::Error::other(format!("no node has slot {slot}:\n{nodes}")).into())
}
