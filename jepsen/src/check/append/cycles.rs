//! Cycles among transactions: some that each must come before the next, and the last before the first.
//!
//! Of each set of transactions that reach one another (Tarjan's strongly connected components), one cycle is told: the
//! shortest of the gravest kind.
//!
//! | kind | edges |
//! |---|---|
//! | G0 | `ww` |
//! | G1c | `ww`, `wr` |
//! | G-single | these, and one `rw`: a stale read, a lost append |
//! | G2 | these, and more `rw` |
//!
//! With `-realtime` behind its name, it takes real time to make it a cycle.
//!
//! Deliberately absent: every cycle. There are as many as one likes, and mending one mends most.

use std::collections::VecDeque;

use crate::check::Finding;

use super::graph::{Edge, Graph, Why};

/// After looking at so many edges, the shortest cycle so far will do.
const ENOUGH: usize = 5_000_000;

type Cycle<'a> = Vec<Edge<'a>>;

/// One cycle of each component, in words.
pub(super) fn findings(graph: &Graph<'_>) -> Vec<Finding> {
    let brief = |nodes: &[usize]| format!("each of {} transactions comes before every other", nodes.len());
    let or_brief =
        |nodes: &Vec<usize>| finding(graph, nodes).unwrap_or_else(|| Finding::new(brief(nodes), nodes.iter().copied()));
    components(graph).iter().map(or_brief).collect()
}

fn finding(graph: &Graph<'_>, nodes: &[usize]) -> Option<Finding> {
    let (name, cycle) = gravest(&graph.part(nodes, |_| true))?;
    let cycle: Vec<Edge<'_>> = cycle.iter().map(|edge| renamed(edge, nodes)).collect();
    let reasons: Vec<String> = cycle.iter().map(in_words).collect();
    let real_time = if cycle.iter().any(|edge| edge.why == Why::Time) { "-realtime" } else { "" };
    let text = format!("{name}{real_time}: no order of {} transactions fits: {}", cycle.len(), reasons.join("; "));
    Some(Finding::new(text, cycle.iter().map(|edge| edge.from)))
}

fn renamed<'a>(edge: &Edge<'a>, nodes: &[usize]) -> Edge<'a> {
    Edge { from: nodes[edge.from], to: nodes[edge.to], why: edge.why }
}

fn in_words(edge: &Edge<'_>) -> String {
    let Edge { from, to, why } = edge;
    match why {
        Why::WriteWrite(key, value) => format!("#{from} appended to {key:?} before #{to} appended {value} (ww)"),
        Why::WriteRead(key, value) => format!("#{to} read {value} in {key:?}, which #{from} appended (wr)"),
        Why::ReadWrite(key, value) => format!("#{from} read {key:?} without {value}, which #{to} appended (rw)"),
        Why::Time => format!("#{from} had ended before #{to} began"),
    }
}

/// The gravest kind of cycle that a component has, and the shortest of that kind.
fn gravest<'a>(graph: &Graph<'a>) -> Option<(&'static str, Cycle<'a>)> {
    let all: Vec<usize> = (0..graph.edges.len()).collect();
    let is_write = |why: Why<'a>| matches!(why, Why::WriteWrite(..));
    let is_data = |why: Why<'a>| matches!(why, Why::WriteWrite(..) | Why::WriteRead(..));
    let no_missing = |why: Why<'a>| !matches!(why, Why::ReadWrite(..));
    let no_time = |why: Why<'a>| why != Why::Time;
    let of = |name: &'static str, cycle: Option<Cycle<'a>>| cycle.map(|cycle| (name, cycle));
    of("G0", shortest(&graph.part(&all, is_write)))
        .or_else(|| of("G0", shortest(&graph.part(&all, |why| is_write(why) || why == Why::Time))))
        .or_else(|| of("G1c", shortest(&graph.part(&all, is_data))))
        .or_else(|| of("G1c", shortest(&graph.part(&all, no_missing))))
        .or_else(|| of("G-single", with_one_missing(graph, &graph.part(&all, is_data))))
        .or_else(|| of("G-single", with_one_missing(graph, &graph.part(&all, no_missing))))
        .or_else(|| of("G2", shortest(&graph.part(&all, no_time))))
        .or_else(|| of("G2", shortest(graph)))
}

/// The shortest cycle that there is.
fn shortest<'a>(graph: &Graph<'a>) -> Option<Cycle<'a>> {
    let mut looked = 0;
    let mut best: Option<Cycle<'a>> = None;
    for start in components(graph).into_iter().flatten() {
        if best.is_some() && looked > ENOUGH {
            break;
        }
        best = shorter(best, path(graph, start, start, &mut looked));
    }
    best
}

/// The shortest cycle of one `rw` edge of `graph` and a path in `rest`.
fn with_one_missing<'a>(graph: &Graph<'a>, rest: &Graph<'a>) -> Option<Cycle<'a>> {
    let mut looked = 0;
    let mut best: Option<Cycle<'a>> = None;
    for edge in graph.edges.iter().flatten().filter(|edge| matches!(edge.why, Why::ReadWrite(..))) {
        if looked > ENOUGH {
            break;
        }
        let back = path(rest, edge.to, edge.from, &mut looked);
        best = shorter(best, back.map(|back| [vec![*edge], back].concat()));
    }
    best
}

fn shorter<'a>(one: Option<Cycle<'a>>, other: Option<Cycle<'a>>) -> Option<Cycle<'a>> {
    one.into_iter().chain(other).min_by_key(Vec::len)
}

/// The shortest path of at least one edge from one node to another, or back to itself.
fn path<'a>(graph: &Graph<'a>, from: usize, to: usize, looked: &mut usize) -> Option<Cycle<'a>> {
    let mut came_by: Vec<Option<Edge<'a>>> = vec![None; graph.edges.len()];
    let mut queue = VecDeque::from([from]);
    while let Some(node) = queue.pop_front() {
        for edge in &graph.edges[node] {
            *looked += 1;
            if came_by[edge.to].is_some() {
                continue;
            }
            came_by[edge.to] = Some(*edge);
            if edge.to == to {
                return Some(walked(&came_by, from, to));
            }
            queue.push_back(edge.to);
        }
    }
    None
}

/// The path that led to a node.
fn walked<'a>(came_by: &[Option<Edge<'a>>], from: usize, to: usize) -> Cycle<'a> {
    let mut edges = Vec::new();
    let mut node = to;
    while let Some(edge) = came_by[node] {
        edges.push(edge);
        node = edge.from;
        if node == from {
            break;
        }
    }
    edges.reverse();
    edges
}

/// Every set of two or more nodes that reach one another.
fn components(graph: &Graph<'_>) -> Vec<Vec<usize>> {
    let mut search = Tarjan::new(graph);
    for node in 0..graph.edges.len() {
        if search.number[node].is_none() {
            search.walk(node);
        }
    }
    search.found
}

/// Tarjan's algorithm, with a path of its own instead of recursion.
struct Tarjan<'g, 'a> {
    graph: &'g Graph<'a>,
    count: usize,
    /// In which order nodes were met.
    number: Vec<Option<usize>>,
    /// The least number that is reached from the node and in no component yet.
    low: Vec<usize>,
    is_open: Vec<bool>,
    open: Vec<usize>,
    found: Vec<Vec<usize>>,
}

impl<'g, 'a> Tarjan<'g, 'a> {
    fn new(graph: &'g Graph<'a>) -> Self {
        let nodes = graph.edges.len();
        Self {
            graph,
            count: 0,
            number: vec![None; nodes],
            low: vec![0; nodes],
            is_open: vec![false; nodes],
            open: Vec::new(),
            found: Vec::new(),
        }
    }

    fn enter(&mut self, node: usize) {
        self.number[node] = Some(self.count);
        self.low[node] = self.count;
        self.count += 1;
        self.is_open[node] = true;
        self.open.push(node);
    }

    fn walk(&mut self, root: usize) {
        let graph = self.graph;
        self.enter(root);
        let mut path = vec![(root, graph.edges[root].iter())];
        while let Some((node, edges)) = path.last_mut() {
            let node = *node;
            match edges.next().map(|edge| (edge.to, self.number[edge.to])) {
                Some((to, None)) => {
                    self.enter(to);
                    path.push((to, graph.edges[to].iter()));
                }
                Some((to, Some(number))) if self.is_open[to] => self.low[node] = self.low[node].min(number),
                Some(_) => {}
                None => {
                    path.pop();
                    if let Some((parent, _)) = path.last() {
                        self.low[*parent] = self.low[*parent].min(self.low[node]);
                    }
                    self.close(node);
                }
            }
        }
    }

    /// Takes the component out, if the node is the first of one.
    fn close(&mut self, node: usize) {
        if self.number[node] != Some(self.low[node]) {
            return;
        }
        let mut component = Vec::new();
        while let Some(member) = self.open.pop() {
            self.is_open[member] = false;
            component.push(member);
            if member == node {
                break;
            }
        }
        if component.len() > 1 {
            self.found.push(component);
        }
    }
}
