//! Whole graphs of tasks, put together here and submitted in one command.
//!
//! ```no_run
//! # use quorate_client::{Client, Error, Graph, v1::TaskSpec};
//! # async fn demo(client: Client) -> Result<(), Error> {
//! let mut graph = Graph::keyed("report", "2026-08");
//! let chapters = graph.map("chapter", ["one", "two"], |title| TaskSpec { title: title.into(), ..Default::default() });
//! let book = graph.join(TaskSpec { title: "bind them".into(), ..Default::default() }, &chapters);
//! graph.submit(&client.tasks()).await?;
//! println!("{} waits for {}", book.id(), chapters.len());
//! # Ok(())
//! # }
//! ```
//!
//! Ids are `name:key:label`, and so is each task's idempotency key: the same graph submitted again creates nothing
//! twice. Deliberately absent: running any of it. That is for workers.

use std::collections::BTreeMap;

use quorate_proto::v1::{SubmitTasksResponse, TaskSpec};

use crate::client::new_id;
use crate::error::Error;
use crate::tasks::Tasks;

/// Between the parts of an id, and in none of them.
const SEPARATOR: char = ':';
/// What the cluster takes as an id.
const MAX_ID_BYTES: usize = 128;
/// What the cluster takes in one command.
const MAX_TASKS: usize = 1_000;

/// A task of a graph.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    id: String,
}

impl Node {
    /// The task's id.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// Tasks and what they wait for. What cannot be is reported when the graph is submitted.
#[derive(Debug, Clone)]
pub struct Graph {
    prefix: String,
    tasks: Vec<TaskSpec>,
    /// Where each id stands.
    positions: BTreeMap<String, usize>,
    /// The first thing that cannot be.
    fault: Option<String>,
}

impl Graph {
    /// An empty graph under a fresh key: every one is another graph, but sending this one again creates nothing twice.
    pub fn new(name: impl AsRef<str>) -> Self {
        Graph::keyed(name, new_id("g"))
    }

    /// An empty graph under a key of your own: a graph of the same name and key is the same graph, also from another
    /// run of the program. Take such a one to spawn from a task.
    pub fn keyed(name: impl AsRef<str>, key: impl AsRef<str>) -> Self {
        let (name, key) = (name.as_ref(), key.as_ref());
        let fault = [("name", name), ("key", key)].iter().find_map(|(what, part)| part_fault(what, part));
        let prefix = format!("{name}{SEPARATOR}{key}");
        Graph { prefix, tasks: Vec::new(), positions: BTreeMap::new(), fault }
    }

    /// Adds a task. Its `task_id`, if it has one, is its label in this graph; otherwise its number is.
    pub fn task(&mut self, spec: TaskSpec) -> Node {
        let label = match spec.task_id.as_str() {
            "" => (self.tasks.len() + 1).to_string(),
            label => label.to_owned(),
        };
        self.add(&label, spec)
    }

    /// Adds one task for each item, labelled with the given name and the item's number, or its own `task_id`.
    pub fn map<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        mut spec_of: impl FnMut(T) -> TaskSpec,
    ) -> Vec<Node> {
        let mut nodes = Vec::new();
        for (i, item) in items.into_iter().enumerate() {
            let spec = spec_of(item);
            let label = match spec.task_id.as_str() {
                "" => format!("{name}-{}", i + 1),
                own => format!("{name}-{own}"),
            };
            nodes.push(self.add(&label, spec));
        }
        nodes
    }

    /// Adds a task that waits for all of the given ones, at most 256.
    pub fn join<'a>(&mut self, spec: TaskSpec, nodes: impl IntoIterator<Item = &'a Node>) -> Node {
        let node = self.task(spec);
        self.after(&node, nodes);
        node
    }

    /// The task waits until all of these are completed. They may belong to a graph that was submitted before.
    pub fn after<'a>(&mut self, node: &Node, dependencies: impl IntoIterator<Item = &'a Node>) {
        if let Some(spec) = self.spec_of(node) {
            add_ids(&mut spec.dependencies, dependencies);
        }
    }

    /// The task waits until all of these have ended, however they ended.
    pub fn soft_after<'a>(&mut self, node: &Node, dependencies: impl IntoIterator<Item = &'a Node>) {
        if let Some(spec) = self.spec_of(node) {
            add_ids(&mut spec.soft_dependencies, dependencies);
        }
    }

    /// What would be submitted, checked: for [`Job::spawn`](crate::Job::spawn), or to look at.
    pub fn specs(&self) -> Result<Vec<TaskSpec>, Error> {
        let count = self.tasks.len();
        let size = (!(1..=MAX_TASKS).contains(&count))
            .then(|| format!("a graph must have 1 to {MAX_TASKS} tasks; got {count}"));
        match self.fault.clone().or(size).or_else(|| self.circle()) {
            Some(message) => Err(Error::Config { message }),
            None => Ok(self.tasks.clone()),
        }
    }

    /// Submits all of it or nothing.
    pub async fn submit(&self, tasks: &Tasks) -> Result<SubmitTasksResponse, Error> {
        tasks.submit(self.specs()?).await
    }

    fn add(&mut self, label: &str, mut spec: TaskSpec) -> Node {
        let id = format!("{}{SEPARATOR}{label}", self.prefix);
        spec.task_id.clone_from(&id);
        spec.idempotency_key.clone_from(&id);
        if let Some(fault) = part_fault("label", label) {
            self.blame(fault);
        } else if id.len() > MAX_ID_BYTES {
            self.blame(format!("name, key and label must be at most {} bytes together; got {id:?}", MAX_ID_BYTES - 2));
        }
        if self.positions.insert(id.clone(), self.tasks.len()).is_some() {
            self.blame(format!("every label must be used once; {label:?} is used again"));
        }
        self.tasks.push(spec);
        Node { id }
    }

    fn spec_of(&mut self, node: &Node) -> Option<&mut TaskSpec> {
        let position = self.positions.get(&node.id).copied();
        if position.is_none() {
            self.blame(format!("a task that waits must be of this graph; {} is not", node.id));
        }
        self.tasks.get_mut(position?)
    }

    fn blame(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
    }

    /// Names the tasks of a circle, if there is one.
    fn circle(&self) -> Option<String> {
        let waits_for: Vec<Vec<usize>> = self.tasks.iter().map(|spec| self.inner_dependencies(spec)).collect();
        let mut open: Vec<usize> = waits_for.iter().map(Vec::len).collect();
        let mut waiters: Vec<Vec<usize>> = vec![Vec::new(); open.len()];
        for (position, dependencies) in waits_for.iter().enumerate() {
            dependencies.iter().for_each(|&dependency| waiters[dependency].push(position));
        }
        let mut free: Vec<usize> = (0..open.len()).filter(|&position| open[position] == 0).collect();
        while let Some(position) = free.pop() {
            for &waiter in &waiters[position] {
                open[waiter] -= 1;
                if open[waiter] == 0 {
                    free.push(waiter);
                }
            }
        }
        // Whatever is not free by now waits for something that is not: following that must come back.
        let mut path = vec![open.iter().position(|&count| count > 0)?];
        loop {
            let last = *path.last()?;
            let next = waits_for[last].iter().copied().find(|&dependency| open[dependency] > 0)?;
            path.push(next);
            if let Some(begin) = path.iter().position(|&position| position == next).filter(|&at| at + 1 < path.len()) {
                let names: Vec<&str> = path[begin..].iter().map(|&at| self.tasks[at].task_id.as_str()).collect();
                return Some(format!("no task may wait for itself; there is a circle: {}", names.join(" waits for ")));
            }
        }
    }

    /// The positions of those dependencies that are of this graph.
    fn inner_dependencies(&self, spec: &TaskSpec) -> Vec<usize> {
        let all = spec.dependencies.iter().chain(&spec.soft_dependencies).chain(&spec.pending_dependencies);
        all.filter_map(|id| self.positions.get(id).copied()).collect()
    }
}

fn add_ids<'a>(ids: &mut Vec<String>, nodes: impl IntoIterator<Item = &'a Node>) {
    for node in nodes {
        if !ids.contains(&node.id) {
            ids.push(node.id.clone());
        }
    }
}

/// What is wrong with a part of an id.
fn part_fault(what: &str, part: &str) -> Option<String> {
    let fits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/@".contains(&b));
    (!fits).then(|| format!("{what} must be one or more letters, digits or . _ - / @; got {part:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(label: &str) -> TaskSpec {
        TaskSpec { task_id: label.to_owned(), ..TaskSpec::default() }
    }

    fn refused(graph: &Graph) -> String {
        graph.specs().unwrap_err().to_string()
    }

    #[test]
    fn ids_and_keys_come_from_the_name_the_key_and_the_label() {
        let mut graph = Graph::keyed("build", "7");
        let first = graph.task(TaskSpec::default());
        let parts = graph.map("part", ["a", ""], labelled);
        let last = graph.join(labelled("end"), &parts);
        graph.soft_after(&last, [&first, &first]);
        assert_eq!(first.id(), "build:7:1");
        let specs = graph.specs().unwrap();
        let ids: Vec<&str> = specs.iter().map(|spec| spec.task_id.as_str()).collect();
        assert_eq!(ids, ["build:7:1", "build:7:part-a", "build:7:part-2", "build:7:end"]);
        assert!(specs.iter().all(|spec| spec.idempotency_key == spec.task_id));
        assert_eq!(specs[3].dependencies, ["build:7:part-a", "build:7:part-2"]);
        assert_eq!(specs[3].soft_dependencies, ["build:7:1"]);
    }

    #[test]
    fn the_same_graph_is_the_same_and_another_is_another() {
        let ids = |mut graph: Graph| graph.task(TaskSpec::default());
        assert_eq!(ids(Graph::keyed("a", "1")), ids(Graph::keyed("a", "1")));
        assert_ne!(ids(Graph::new("a")), ids(Graph::new("a")));
        let mut graph = Graph::new("a");
        graph.task(TaskSpec::default());
        assert_eq!(graph.specs().unwrap(), graph.specs().unwrap());
    }

    #[test]
    fn a_circle_is_named() {
        let mut graph = Graph::keyed("g", "k");
        let [start, a, b, c] = ["start", "a", "b", "c"].map(|label| graph.task(labelled(label)));
        graph.after(&a, [&start, &c]);
        graph.after(&b, [&a]);
        assert!(graph.specs().is_ok());
        graph.soft_after(&c, [&b]);
        let message = refused(&graph);
        assert!(message.ends_with("g:k:a waits for g:k:c waits for g:k:b waits for g:k:a"), "{message}");
        let mut alone = Graph::keyed("g", "k");
        let node = alone.task(labelled("x"));
        alone.after(&node, [&node]);
        assert!(refused(&alone).ends_with("circle: g:k:x waits for g:k:x"), "{}", refused(&alone));
    }

    #[test]
    fn what_cannot_be_is_said() {
        assert!(refused(&Graph::new("empty")).contains("1 to 1000 tasks; got 0"));
        let mut twice = Graph::new("g");
        twice.task(labelled("a"));
        twice.task(labelled("a"));
        assert!(refused(&twice).contains("\"a\" is used again"));
        let mut named = Graph::new("a:b");
        named.task(TaskSpec::default());
        assert!(refused(&named).starts_with("name must be"));
        let mut labels = Graph::new("g");
        labels.task(labelled("not one"));
        assert!(refused(&labels).starts_with("label must be"));
        let mut long = Graph::new("g");
        long.task(labelled(&"x".repeat(MAX_ID_BYTES)));
        assert!(refused(&long).contains("126 bytes together"));
        let mut other = Graph::new("other");
        let stranger = Graph::new("g").task(TaskSpec::default());
        let mine = other.task(TaskSpec::default());
        other.after(&mine, [&stranger]);
        assert!(other.specs().is_ok(), "it may exist already");
        other.after(&stranger, [&mine]);
        assert!(refused(&other).contains("must be of this graph"));
    }
}
