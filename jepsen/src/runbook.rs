//! A page of `docs/operating`, done as it is written.
//!
//! The shell blocks of a page are its steps. The comment on the line above a block says who does it:
//!
//! ```text
//!   <!-- run: NAME -->           this module, by `sh -eu`; exit code 0, and the output has every text behind `# => `
//!   <!-- started by the test --> a server: the test starts what the block says and holds the process
//!   <!-- WHAT by the test -->    the test, in its own way: a machine that dies, a variable that is set
//! ```
//!
//! Owns: the order. A test goes through a page block by block; one that is left out, or comes in another order than the
//! page has it, is an error. So page and test cannot drift apart.
//!
//! Deliberately absent: any knowledge of clusters. What a page calls `$NODE4` is said by the test.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::binary;
use crate::process::{Process, clean_command};
use crate::until::until;

/// How long one step may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A block of shell on a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// What the comment above it says.
    pub tag: Option<String>,
    /// The lines between the fences.
    pub script: String,
    /// The line of the page on which it begins.
    pub line: usize,
}

/// Who does a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Runbook,
    Test,
}

#[derive(Debug)]
struct Step {
    who: Who,
    name: String,
    script: String,
    expected: Vec<String>,
    line: usize,
}

/// A page on its way from the first block to the last.
#[derive(Debug)]
pub struct Runbook {
    page: String,
    steps: VecDeque<Step>,
    variables: BTreeMap<String, String>,
    dir: PathBuf,
}

/// Where the pages lie.
pub fn pages() -> Result<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set: run this by cargo")?;
    Ok(Path::new(&package).join("../docs/operating"))
}

/// The shell blocks of a page, in order.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut tag = None;
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let comment = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
        if let Some(comment) = comment {
            tag = Some(comment.to_owned());
        } else if line.starts_with("```") {
            let inside: Vec<&str> = lines.by_ref().map(|(line, _)| line).take_while(|line| *line != "```").collect();
            let tag = tag.take();
            if line == "```sh" {
                blocks.push(Block { tag, script: inside.join("\n"), line: number });
            }
        } else if !line.trim().is_empty() {
            tag = None;
        }
    }
    blocks
}

fn step(page: &str, block: Block) -> Result<Step> {
    let at = format!("{page}:{}", block.line);
    let tag = block.tag.with_context(|| format!("{at}: nothing above this block says who does it"))?;
    let (who, name) = match (tag.strip_prefix("run: "), tag.strip_suffix(" by the test")) {
        (Some(name), _) => (Who::Runbook, name),
        (None, Some(what)) => (Who::Test, what),
        (None, None) => bail!("{at}: expected \"run: NAME\" or \"WHAT by the test\"; got {tag:?}"),
    };
    let expected = block.script.lines().filter_map(|line| line.split_once("# => "));
    let expected = expected.map(|(_, text)| text.trim().to_owned()).collect();
    Ok(Step { who, name: name.to_owned(), script: block.script, expected, line: block.line })
}

impl Runbook {
    /// Opens a page of `docs/operating`. What its steps print is kept in `dir`, which is `$DIR` on the page.
    pub fn open(page: &str, dir: &Path) -> Result<Self> {
        let path = pages()?.join(page);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut book = Self::parse(page, &text, dir)?;
        // The binary under test, whatever its file is called, and no other: see `binary`.
        let bin = dir.join("runbook-bin");
        fs::create_dir_all(&bin)?;
        let link = bin.join("quorate");
        if !link.exists() {
            std::os::unix::fs::symlink(binary::quorate()?.canonicalize()?, &link)?;
        }
        let path = std::env::var("PATH").unwrap_or_default();
        book.set("PATH", format!("{}:{path}", bin.display()));
        book.set("DIR", dir.display().to_string());
        Ok(book)
    }

    fn parse(page: &str, text: &str, dir: &Path) -> Result<Self> {
        let steps = blocks(text).into_iter().map(|block| step(page, block)).collect::<Result<VecDeque<_>>>()?;
        ensure!(!steps.is_empty(), "{page} has no steps");
        Ok(Runbook { page: page.to_owned(), steps, variables: BTreeMap::new(), dir: dir.to_owned() })
    }

    /// Gives a variable of the page its value.
    pub fn set(&mut self, variable: &str, value: impl Into<String>) {
        self.variables.insert(variable.to_owned(), value.into());
    }

    /// Runs the next step, which must be the one of this name, and gives what it wrote to stdout.
    pub async fn run(&mut self, name: &str) -> Result<String> {
        let step = self.next(Who::Runbook, name)?;
        let at = format!("{}:{} ({name})", self.page, step.line);
        let files = self.dir.join(format!("{}-{name}", self.page.trim_end_matches(".md")));
        let (out, err) = (files.with_extension("out"), files.with_extension("err"));
        let child = clean_command(Path::new("sh"))
            .args(["-euc", &step.script])
            .envs(&self.variables)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{at}: no shell"))?;
        let mut group = Group(child);
        let ended = until(&format!("{at} ends"), LIMIT, || {
            let status = group.0.try_wait();
            async move { Ok(status?) }
        })
        .await;
        let (out, err) = (lossy(&out)?, lossy(&err)?);
        let printed = format!("{}\n--- stdout\n{out}--- stderr\n{err}", step.script);
        let status = ended.with_context(|| printed.clone())?;
        ensure!(status.success(), "{at} ended with {status}\n{printed}");
        for text in step.expected {
            let text = self.expand(&text);
            ensure!(out.contains(&text) || err.contains(&text), "{at} did not print {text:?}\n{printed}");
        }
        Ok(out)
    }

    /// Starts the server of the next block as it stands there, one command. Its output goes to `<log_name>.out` and
    /// `<log_name>.err`.
    pub fn start(&mut self, log_name: &str) -> Result<Process> {
        let step = self.next(Who::Test, "started")?;
        // `exec`: signals and the process id are the server's, not a shell's.
        let args = vec!["-euc".to_owned(), format!("exec {}", step.script.trim_start())];
        let mut process = Process::new(log_name, Path::new("sh"), args, &self.dir);
        for (name, value) in &self.variables {
            process = process.with_env(name, value);
        }
        process.start()?;
        Ok(process)
    }

    /// Passes the next block, which the page must call "`what` by the test": the caller has done it, or does it now.
    pub fn pass(&mut self, what: &str) -> Result<()> {
        self.next(Who::Test, what).map(drop)
    }

    /// The end of the page: nothing of it may be left.
    pub fn finish(self) -> Result<()> {
        match self.steps.front() {
            None => Ok(()),
            Some(step) => bail!("{}:{}: the test ends before {:?}", self.page, step.line, step.name),
        }
    }

    fn next(&mut self, who: Who, name: &str) -> Result<Step> {
        let step = self.steps.pop_front().with_context(|| format!("{} ends before {name:?}", self.page))?;
        if (step.who, step.name.as_str()) != (who, name) {
            bail!("{}:{}: the page says {:?} here, the test {name:?}", self.page, step.line, step.name);
        }
        Ok(step)
    }

    /// As the shell would: `$NAME` becomes its value.
    fn expand(&self, text: &str) -> String {
        let mut variables: Vec<_> = self.variables.iter().collect();
        // Longer names first: $NODE1 must not take the front of $NODE10.
        variables.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        variables.into_iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("${name}"), value))
    }
}

fn lossy(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A shell and what it started: both end when a step takes too long.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            if let Err(error) = kill_process_group(Pid::from_child(&self.0), Signal::KILL) {
                eprintln!("could not end a step of a runbook: {error}");
            }
            // Killed or gone: it ends at once.
            let _ = self.0.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# A page

<!-- run: greet -->
```sh
echo hello $WHOM   # => hello $WHOM
```

```text
```

<!-- started by the test -->

```sh
quorate serve
```
<!-- run: lost -->
A line in between.
";

    fn book(page: &str, dir: &Path) -> Result<Runbook> {
        let mut book = Runbook::parse("page.md", page, dir)?;
        book.set("WHO", "nobody");
        book.set("WHOM", "world");
        book.set("PATH", std::env::var("PATH")?);
        Ok(book)
    }

    #[test]
    fn a_block_has_the_comment_above_it_and_its_line() {
        let greet =
            Block { tag: Some("run: greet".into()), script: "echo hello $WHOM   # => hello $WHOM".into(), line: 4 };
        let serve = Block { tag: Some("started by the test".into()), script: "quorate serve".into(), line: 13 };
        assert_eq!(blocks(PAGE), [greet, serve]);
    }

    #[tokio::test]
    async fn a_step_prints_what_the_page_says() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut book = book(PAGE, dir.path())?;
        assert_eq!(book.run("greet").await?, "hello world\n");
        book.pass("started")?;
        book.finish()
    }

    #[tokio::test]
    async fn what_fails_or_prints_something_else_is_an_error() -> Result<()> {
        let dir = tempfile::tempdir()?;
        for script in ["false; true", "echo $MISSING", "echo hello   # => goodbye"] {
            let page = format!("<!-- run: it -->\n```sh\n{script}\n```\n");
            assert!(book(&page, dir.path())?.run("it").await.is_err(), "{script}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn page_and_test_must_agree_on_the_order() -> Result<()> {
        let dir = tempfile::tempdir()?;
        assert!(book(PAGE, dir.path())?.pass("started").is_err(), "the page begins otherwise");
        assert!(book(PAGE, dir.path())?.finish().is_err(), "nothing was done");
        assert!(book("```sh\ntrue\n```\n", dir.path()).is_err(), "nobody does it");
        assert!(book("<!-- later -->\n```sh\ntrue\n```\n", dir.path()).is_err(), "an unknown tag");
        Ok(())
    }
}
