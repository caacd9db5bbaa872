//! What the doctor found: branches of steps, as text for people and as JSON for machines.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::clock;
use crate::explain::{CauseKind, Explanation, Fault, Passes, Refusal};

/// How long one step may take; Exchange Online takes up to 30 seconds for a sign-in.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// How wide the names of steps are, in characters.
const NAME_WIDTH: usize = 12;

/// Everything that was found.
#[derive(Debug)]
pub struct Report {
    /// The configuration file.
    pub file: String,
    /// The user that was tried, if one was.
    pub user: Option<String>,
    /// In the order of the walk.
    pub branches: Vec<Branch>,
    /// What else is to be said.
    pub notes: Vec<String>,
}

/// One way that was walked: to the identity provider, or to one upstream.
#[derive(Debug)]
pub struct Branch {
    /// `imap: outlook.office365.com:993`.
    pub title: String,
    /// Which listeners lead there.
    pub listeners: Vec<String>,
    /// The steps that are to be gone, in their order.
    planned: Vec<String>,
    lines: Vec<Line>,
    deadline: Instant,
    broken: bool,
}

/// One step.
#[derive(Debug)]
struct Line {
    step: String,
    mark: Mark,
    said: Said,
    story: Option<Explanation>,
    took: Option<Duration>,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Well,
    Warning,
    Failed,
    NotReached,
}

impl Mark {
    fn as_str(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::NotReached => "not-reached",
        }
    }
}

/// What there is to say of a step that went well.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// One line.
    pub text: String,
    /// Lines below it.
    pub details: Vec<String>,
    /// What is not well all the same, and what to do about it.
    pub warnings: Vec<(String, String)>,
}

impl Said {
    /// One line.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }
}

impl Branch {
    /// A way with these steps.
    pub fn new(title: String, planned: &[&str], deadline: Instant) -> Self {
        Self {
            title,
            listeners: Vec::new(),
            planned: planned.iter().map(|&step| step.to_owned()).collect(),
            lines: Vec::new(),
            deadline,
            broken: false,
        }
    }

    /// Adds a step to the end of the way.
    pub fn plan(&mut self, step: &str) {
        self.planned.push(step.to_owned());
    }

    /// Whether the way goes no further.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Goes one step. `None`: it failed, and so the way ends here.
    pub async fn step<T>(
        &mut self,
        step: &str,
        work: impl Future<Output = Result<(T, Said), Explanation>>,
    ) -> Option<T> {
        let gone = self.side_step(step, work).await;
        self.broken |= gone.is_none();
        gone
    }

    /// Goes one step on which no later one depends.
    pub async fn side_step<T>(
        &mut self,
        step: &str,
        work: impl Future<Output = Result<(T, Said), Explanation>>,
    ) -> Option<T> {
        let started = clock::now();
        let until = self.deadline.min(started + STEP_LIMIT);
        let result = timeout_at(until, work).await.unwrap_or_else(|_| Err(too_slow(step)));
        let took = Some(clock::now() - started);
        match result {
            Ok((value, said)) => {
                let mark = if said.warnings.is_empty() { Mark::Well } else { Mark::Warning };
                self.lines.push(Line { step: step.to_owned(), mark, said, story: None, took });
                Some(value)
            }
            Err(story) => {
                self.fail(step, story, Vec::new(), took);
                None
            }
        }
    }

    /// A step that failed, with what is known beside.
    pub fn fail(&mut self, step: &str, story: Explanation, details: Vec<String>, took: Option<Duration>) {
        let said = Said { text: story.what.clone(), details, warnings: Vec::new() };
        self.lines.push(Line { step: step.to_owned(), mark: Mark::Failed, said, story: Some(story), took });
    }

    /// Adds details to the step that was gone last.
    pub fn add_details(&mut self, details: Vec<String>) {
        if let Some(line) = self.lines.last_mut() {
            line.said.details.extend(details);
        }
    }

    /// A step that is left out, and why.
    pub fn leave_out(&mut self, step: &str, why: &str) {
        let said = Said::new(why);
        let step = step.to_owned();
        self.lines.push(Line { step, mark: Mark::NotReached, said, story: None, took: None });
    }

    /// What was planned and never came to its turn.
    pub fn finish(&mut self) {
        let failed = self.lines.iter().find(|line| line.mark == Mark::Failed);
        let why = failed.map_or_else(
            || "not reached".to_owned(),
            |line| format!("not reached, because of the step `{}`", line.step),
        );
        let planned = std::mem::take(&mut self.planned);
        for step in &planned {
            if !self.lines.iter().any(|line| line.step == *step) {
                self.leave_out(step, &why);
            }
        }
        // what was left out early stands where it was planned
        let mut lines = std::mem::take(&mut self.lines);
        for step in &planned {
            self.lines.extend(lines.extract_if(.., |line| line.step == *step));
        }
        self.lines.append(&mut lines);
    }
}

fn too_slow(step: &str) -> Explanation {
    Explanation {
        code: "DOCTOR-TIMEOUT".into(),
        fault: Fault::Network,
        what: format!("the step `{step}` came to no end in time"),
        remedy:
            "find out what swallows packets (a firewall that drops is the usual one), or give the doctor \
                 more time with `--timeout`"
                .to_owned(),
        passes: Passes::ByItself(None),
        refusal: Refusal::Unavailable { retry_after: None },
    }
}

impl Report {
    /// Whether no step failed.
    pub fn is_well(&self) -> bool {
        self.failures().next().is_none()
    }

    /// How the report ends: what failed, and whose turn it is.
    pub fn verdict(&self) -> String {
        let failed = self.failures().count();
        let count = |mark| self.lines().filter(|line| line.mark == mark).count();
        let all = self.lines().count();
        if failed == 0 {
            let warnings = match count(Mark::Warning) {
                0 => String::new(),
                1 => "; one of them with a warning".to_owned(),
                many => format!("; {many} of them with a warning"),
            };
            return format!("all is well: {all} steps{warnings}");
        }
        let mut faults: Vec<&str> = Vec::new();
        for story in self.failures() {
            let whose = whose(story);
            if !faults.contains(&whose) {
                faults.push(whose);
            }
        }
        let first = self.failures().next().map(|story| story.code.as_ref()).unwrap_or_default();
        format!(
            "{failed} of {all} steps failed, {} not reached; whose turn it is: {}; begin with {first}",
            count(Mark::NotReached),
            faults.join(", then "),
        )
    }

    /// For people. `plain`: without characters that are not ASCII.
    pub fn text(&self, plain: bool) -> String {
        let mut text = String::new();
        for branch in &self.branches {
            let listeners = match branch.listeners.as_slice() {
                [] => String::new(),
                [one] => format!(" (listener {one})"),
                many => format!(" (listeners {})", many.join(", ")),
            };
            put(&mut text, format_args!("{}{listeners}", branch.title));
            for line in &branch.lines {
                line.text(&mut text);
            }
            text.push('\n');
        }
        for note in &self.notes {
            put(&mut text, format_args!("{note}"));
        }
        put(&mut text, format_args!("{}", self.verdict()));
        if plain { in_ascii(&text) } else { text }
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let branches: Vec<Value> = self
            .branches
            .iter()
            .map(|branch| {
                json!({
                    "title": branch.title,
                    "listeners": branch.listeners,
                    "steps": branch.lines.iter().map(Line::json).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "mailkey": env!("CARGO_PKG_VERSION"),
            "file": self.file,
            "user": self.user,
            "well": self.is_well(),
            "verdict": self.verdict(),
            "notes": self.notes,
            "branches": branches,
        })
    }

    fn lines(&self) -> impl Iterator<Item = &Line> {
        self.branches.iter().flat_map(|branch| &branch.lines)
    }

    fn failures(&self) -> impl Iterator<Item = &Explanation> {
        self.lines().filter_map(|line| line.story.as_ref())
    }
}

impl Line {
    fn text(&self, text: &mut String) {
        let mark = match self.mark {
            Mark::Well => '✓',
            Mark::Warning => '!',
            Mark::Failed => '✗',
            Mark::NotReached => '–',
        };
        let took = self.took.map(|took| format!("  ({} ms)", took.as_millis())).unwrap_or_default();
        let code = self
            .story
            .as_ref()
            .map(|story| format!("  [{}, {}]", story.code, story.fault.as_str()))
            .unwrap_or_default();
        let Self { step, said, .. } = self;
        put(text, format_args!("  {mark} {step:<NAME_WIDTH$} {}{code}{took}", said.text));
        for detail in &said.details {
            put(text, format_args!("    {:NAME_WIDTH$} {detail}", ""));
        }
        for (what, remedy) in &said.warnings {
            put(text, format_args!("    {:NAME_WIDTH$} ! {what}", ""));
            put(text, format_args!("    {:NAME_WIDTH$} → {remedy}", ""));
        }
        if let Some(story) = &self.story {
            put(text, format_args!("    {:NAME_WIDTH$} → {}", "", story.remedy));
        }
    }

    fn json(&self) -> Value {
        let story = self.story.as_ref();
        json!({
            "step": self.step,
            "result": self.mark.as_str(),
            "what": self.said.text,
            "details": self.said.details,
            "warnings": self.said.warnings.iter()
                .map(|(what, remedy)| json!({"what": what, "remedy": remedy}))
                .collect::<Vec<_>>(),
            "code": story.map(|story| story.code.as_ref()),
            "fault": story.map(|story| story.fault.as_str()),
            "remedy": story.map(|story| story.remedy.as_str()),
            "milliseconds": self.took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        })
    }
}

/// Who has to move, in words for somebody who is to be called.
fn whose(story: &Explanation) -> &'static str {
    match (story.fault, story.refusal) {
        (Fault::MailClient, Refusal::BadCredentials) => "the user name or password that was given",
        (Fault::MailClient, _) => "the mail client",
        (_, Refusal::ContactAdmin(cause)) if cause.kind == CauseKind::Consent => {
            "the tenant's administrator (consent)"
        }
        (Fault::Account, _) => "the account",
        (Fault::Tenant, _) => "the tenant's administrator",
        (Fault::Configuration, _) => "the configuration or the application's registration",
        (Fault::Network, _) => "the network between here and Microsoft",
        (Fault::Provider, _) => "Microsoft's service",
        (Fault::Mailkey, _) => "mailkey",
    }
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _written = writeln!(text, "{line}");
}

/// For terminals that know no UTF-8.
fn in_ascii(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '✓' => plain.push_str("ok  "),
            '✗' => plain.push_str("FAIL"),
            '–' => plain.push_str("-   "),
            '→' => plain.push_str("->"),
            '…' => plain.push_str("..."),
            c if c.is_ascii() => plain.push(c),
            _ => plain.push('?'),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing() -> Explanation {
        too_slow("name")
    }

    #[tokio::test]
    async fn what_comes_behind_a_failure_is_not_reached_and_the_verdict_counts_it() {
        let mut branch = Branch::new("x".to_owned(), &["name", "tls", "token"], clock::now() + STEP_LIMIT);
        branch.leave_out("token", "not asked");
        assert_eq!(branch.step("name", async { Err::<((), Said), _>(failing()) }).await, None);
        branch.finish();
        let report = Report { file: "f".to_owned(), user: None, branches: vec![branch], notes: Vec::new() };
        assert!(!report.is_well());
        let text = report.text(false);
        let marks: Vec<&str> = text.lines().skip(1).filter(|line| !line.contains('→')).take(3).collect();
        assert!(marks[0].contains("✗ name") && marks[1].contains("– tls"), "{text}");
        assert!(marks[2].contains("– token") && marks[2].contains("not asked"), "{text}");
        assert!(report.verdict().starts_with("1 of 3 steps failed, 2 not reached"), "{}", report.verdict());
        let plain = report.text(true);
        assert!(plain.is_ascii() && plain.contains("FAIL name") && plain.contains("-> find out"), "{plain}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_never_ends_is_ended() {
        let mut branch = Branch::new("x".to_owned(), &["name"], clock::now() + Duration::from_secs(3));
        let gone = branch.step("name", std::future::pending::<Result<((), Said), Explanation>>()).await;
        assert_eq!(gone, None);
        let line = branch.lines.first().unwrap();
        assert_eq!(line.story.as_ref().unwrap().code, "DOCTOR-TIMEOUT");
    }
}
