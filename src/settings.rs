//! The function's settings: environment variables, read once, every problem told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::ids::{AccountId, Arn, Region};
use crate::platform::Platform;
use crate::text::quoted;

/// What an operator can set. The defaults stand beside each variable in [`Settings::read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The SNS topic that is told about failures.
    pub topic: Topic,
    /// The Run Command documents that restart the agent.
    pub documents: Documents,
    /// When a message is sent.
    pub notify_on: NotifyOn,
    /// Instances of one deployment group that may be restarting at the same time.
    pub max_concurrency: Rate,
    /// Failed instances of one deployment group after which nothing more is sent.
    pub max_errors: Rate,
    /// Seconds that a host waits for a running lifecycle event or another restart, 0 to 240.
    pub busy_wait_seconds: u32,
    /// Agents that use less than this many MiB are left alone; 0 restarts every agent.
    pub min_memory_mib: u32,
    /// The tag that an instance must have to be sent to; none when all may be.
    pub instance_tag: Option<Tag>,
    /// Accounts with an installation of their own: what is of them is none of this one's business.
    pub covered_accounts: BTreeSet<AccountId>,
    /// Plan only: send nothing, publish nothing.
    pub dry_run: bool,
}

/// The Run Command documents that restart the agent, each a name or an ARN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Documents {
    /// The one for Linux.
    pub linux: String,
    /// The one for Windows, if Windows is to be restarted.
    pub windows: Option<String>,
}

impl Documents {
    /// The platform's document.
    pub fn of(&self, platform: Platform) -> Option<&str> {
        match platform {
            Platform::Linux => Some(&self.linux),
            Platform::Windows => self.windows.as_deref(),
        }
    }

    /// The platforms that have one.
    pub fn platforms(&self) -> Vec<Platform> {
        let mut platforms = vec![Platform::Linux, Platform::Windows];
        platforms.retain(|platform| self.of(*platform).is_some());
        platforms
    }
}

/// A tag that an instance has, or has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl Tag {
    /// Whether it is among these.
    pub fn is_among(&self, tags: &BTreeMap<String, String>) -> bool {
        tags.get(&self.key) == Some(&self.value)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// A standard SNS topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// The topic's ARN.
    pub arn: String,
    /// The region in the ARN: where to publish.
    pub region: Region,
    /// The account in the ARN.
    pub account: AccountId,
}

/// When a message is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotifyOn {
    /// When an instance needs attention or there is a problem.
    Attention,
    /// After every event that was acted upon.
    Always,
}

/// A number of instances, absolute or as a percentage of the fleet: the syntax of Run Command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// That many instances.
    Count(usize),
    /// That many percent of the fleet, 0 to 100.
    Percent(usize),
}

impl Rate {
    /// The number of instances in a fleet of `fleet`, rounded up.
    pub fn of(self, fleet: usize) -> usize {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => (fleet * percent).div_ceil(100),
        }
    }
}

/// An environment variable that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub variable: &'static str,
    /// What counts when it is absent or empty; `None` when it is required.
    pub default: Option<&'static str>,
    /// What it may hold.
    pub accepted: &'static str,
}

const TOPIC_ARN: Setting = Setting {
    variable: "TOPIC_ARN",
    default: None,
    accepted: "the ARN of a standard SNS topic, such as arn:aws:sns:eu-west-1:123456789012:my-topic",
};
const DOCUMENT_NAME: Setting = Setting {
    variable: "DOCUMENT_NAME",
    default: None,
    accepted: "the name or ARN of the restart document for Linux, 3 to 128 of a-z A-Z 0-9 _ - . : /",
};
const WINDOWS_DOCUMENT_NAME: Setting = Setting {
    variable: "WINDOWS_DOCUMENT_NAME",
    default: Some(""),
    accepted: "the name or ARN of the restart document for Windows, 3 to 128 of a-z A-Z 0-9 _ - . : /",
};
const NOTIFY_ON: Setting = Setting {
    variable: "NOTIFY_ON",
    default: Some("attention"),
    accepted: "attention or always",
};
const MAX_CONCURRENCY: Setting = Setting {
    variable: "MAX_CONCURRENCY",
    default: Some("50%"),
    accepted: "a number from 1, or 1% to 100%",
};
const MAX_ERRORS: Setting = Setting {
    variable: "MAX_ERRORS",
    default: Some("10%"),
    accepted: "a number from 0, or 0% to 100%",
};
const BUSY_WAIT_SECONDS: Setting = Setting {
    variable: "BUSY_WAIT_SECONDS",
    default: Some("120"),
    accepted: "whole seconds, 0 to 240",
};
const MIN_MEMORY_MIB: Setting = Setting {
    variable: "MIN_MEMORY_MIB",
    default: Some("0"),
    accepted: "whole MiB, 0 (off) to 1048576",
};
const INSTANCE_TAG: Setting = Setting {
    variable: "INSTANCE_TAG",
    default: Some(""),
    accepted: "KEY=VALUE, such as AgentRestart=yes, a key of 1 to 128 and a value of 1 to 256 of a-z A-Z 0-9 + = . : / @ _ - \
               (no blanks, and no = in the key)",
};
const COVERED_ACCOUNTS: Setting = Setting {
    variable: "COVERED_ACCOUNTS",
    default: Some(""),
    accepted: "account ids of 12 digits with commas between them, such as 123456789012,210987654321",
};
const DRY_RUN: Setting = Setting {
    variable: "DRY_RUN",
    default: Some("false"),
    accepted: "true or false",
};

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {found}; accepted: {}", setting.variable, setting.accepted)]
pub struct SettingProblem {
    /// Which one.
    pub setting: Setting,
    /// What it holds.
    pub found: String,
}

impl Settings {
    /// Every variable that [`read`](Self::read) reads, in order.
    pub const ALL: [Setting; 11] = [
        TOPIC_ARN,
        DOCUMENT_NAME,
        WINDOWS_DOCUMENT_NAME,
        NOTIFY_ON,
        MAX_CONCURRENCY,
        MAX_ERRORS,
        BUSY_WAIT_SECONDS,
        MIN_MEMORY_MIB,
        INSTANCE_TAG,
        COVERED_ACCOUNTS,
        DRY_RUN,
    ];

    /// Reads all settings through `lookup` (the environment in production). An empty optional variable
    /// counts as absent.
    ///
    /// # Errors
    /// Every problem, not just the first.
    pub fn read(
        lookup: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Self, Vec<SettingProblem>> {
        let mut reader = Reader {
            lookup,
            problems: Vec::new(),
        };
        let topic = reader.read(TOPIC_ARN, parse_topic);
        let linux = reader.read(DOCUMENT_NAME, parse_document_name);
        let windows = reader.read(WINDOWS_DOCUMENT_NAME, |text| match text {
            "" => Some(None),
            name => parse_document_name(name).map(Some),
        });
        let notify_on = reader.read(NOTIFY_ON, parse_notify_on);
        let max_concurrency = reader.read(MAX_CONCURRENCY, |text| parse_rate(text, 1));
        let max_errors = reader.read(MAX_ERRORS, |text| parse_rate(text, 0));
        let busy_wait_seconds = reader.read(BUSY_WAIT_SECONDS, |text| parse_number(text, 240));
        let min_memory_mib = reader.read(MIN_MEMORY_MIB, |text| parse_number(text, 1_048_576));
        let instance_tag = reader.read(INSTANCE_TAG, |text| match text {
            "" => Some(None),
            tag => parse_tag(tag).map(Some),
        });
        let covered_accounts = reader.read(COVERED_ACCOUNTS, parse_accounts);
        let dry_run = reader.read(DRY_RUN, |text| text.parse().ok());
        // Every one has been read by now, so that every problem is known.
        let settings = || {
            Some(Self {
                topic: topic?,
                documents: Documents {
                    linux: linux?,
                    windows: windows?,
                },
                notify_on: notify_on?,
                max_concurrency: max_concurrency?,
                max_errors: max_errors?,
                busy_wait_seconds: busy_wait_seconds?,
                min_memory_mib: min_memory_mib?,
                instance_tag: instance_tag?,
                covered_accounts: covered_accounts?,
                dry_run: dry_run?,
            })
        };
        settings().ok_or(reader.problems)
    }
}

struct Reader<L> {
    lookup: L,
    problems: Vec<SettingProblem>,
}

impl<L: Fn(&'static str) -> Option<String>> Reader<L> {
    /// Reads one variable. Gives `None` and notes the problem when there is no usable value.
    fn read<T>(&mut self, setting: Setting, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let set = (self.lookup)(setting.variable).filter(|text| !text.is_empty());
        let found = match set.as_deref().or(setting.default) {
            Some(text) => match parse(text) {
                Some(value) => return Some(value),
                None => format!("{} is not accepted", quoted(text)),
            },
            None => "is not set".to_owned(),
        };
        self.problems.push(SettingProblem { setting, found });
        None
    }
}

fn parse_topic(text: &str) -> Option<Topic> {
    let arn = Arn::read(text).filter(|arn| arn.service == "sns")?;
    let fits = (1..=256).contains(&arn.resource.len())
        && arn
            .resource
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    fits.then_some(())?;
    Some(Topic {
        arn: text.to_owned(),
        region: Region::read(arn.region)?,
        account: AccountId::read(arn.account)?,
    })
}

fn parse_document_name(text: &str) -> Option<String> {
    let fits = (3..=128).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.:/".contains(c));
    fits.then(|| text.to_owned())
}

fn parse_tag(text: &str) -> Option<Tag> {
    let (key, value) = text.split_once('=')?;
    let fits = |part: &str, most| {
        (1..=most).contains(&part.len())
            && part
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"+=.:/@_-".contains(&c))
    };
    (fits(key, 128) && fits(value, 256)).then(|| Tag {
        key: key.to_owned(),
        value: value.to_owned(),
    })
}

fn parse_accounts(text: &str) -> Option<BTreeSet<AccountId>> {
    match text {
        "" => Some(BTreeSet::new()),
        list => list.split(',').map(AccountId::read).collect(),
    }
}

fn parse_notify_on(text: &str) -> Option<NotifyOn> {
    match text {
        "attention" => Some(NotifyOn::Attention),
        "always" => Some(NotifyOn::Always),
        _ => None,
    }
}

/// Seven characters at most, as in `SendCommand`'s `MaxConcurrency` and `MaxErrors`.
fn parse_rate(text: &str, least: usize) -> Option<Rate> {
    let (digits, percent) = match text.strip_suffix('%') {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    let canonical = digits == "0" || !digits.starts_with('0');
    if text.len() > 7 || !canonical || !digits.chars().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let number: usize = digits.parse().ok()?;
    match percent {
        _ if number < least => None,
        true if number > 100 => None,
        true => Some(Rate::Percent(number)),
        false => Some(Rate::Count(number)),
    }
}

fn parse_number(text: &str, most: u32) -> Option<u32> {
    let digits = text.chars().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:agent-restarts";

    fn read(pairs: &[(&'static str, &str)]) -> Result<Settings, Vec<SettingProblem>> {
        Settings::read(|name| {
            pairs
                .iter()
                .find(|(variable, _)| *variable == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn every_setting_that_is_read_is_listed() {
        let asked = std::cell::RefCell::new(Vec::new());
        let read = Settings::read(|variable| {
            asked.borrow_mut().push(variable);
            None
        });
        assert!(read.is_err());
        assert_eq!(asked.take(), Settings::ALL.map(|setting| setting.variable));
    }

    #[test]
    fn two_settings_are_enough() {
        let settings = read(&[("TOPIC_ARN", TOPIC), ("DOCUMENT_NAME", "restart-agent")]).unwrap();
        assert_eq!(settings.documents.platforms(), [Platform::Linux]);
        assert_eq!(settings.max_concurrency, Rate::Percent(50));
        assert_eq!(settings.max_errors, Rate::Percent(10));
        assert_eq!(settings.busy_wait_seconds, 120);
        assert_eq!(settings.topic.region.as_str(), "eu-west-1");
        assert!(!settings.dry_run);
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let problems = read(&[
            (
                "TOPIC_ARN",
                "arn:aws:sns:eu-west-1:123456789012:orders.fifo",
            ),
            ("WINDOWS_DOCUMENT_NAME", "a b"),
            ("NOTIFY_ON", "never"),
            ("MAX_CONCURRENCY", "0"),
            ("MAX_ERRORS", "101%"),
            ("BUSY_WAIT_SECONDS", "241"),
            ("MIN_MEMORY_MIB", "-1"),
            ("INSTANCE_TAG", "AgentRestart=after deployment"),
            ("COVERED_ACCOUNTS", "123456789012, 210987654321"),
            ("DRY_RUN", "yes"),
        ])
        .unwrap_err();
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        TOPIC_ARN: "arn:aws:sns:eu-west-1:123456789012:orders.fifo" is not accepted; accepted: the ARN of a standard SNS topic, such as arn:aws:sns:eu-west-1:123456789012:my-topic
        DOCUMENT_NAME: is not set; accepted: the name or ARN of the restart document for Linux, 3 to 128 of a-z A-Z 0-9 _ - . : /
        WINDOWS_DOCUMENT_NAME: "a b" is not accepted; accepted: the name or ARN of the restart document for Windows, 3 to 128 of a-z A-Z 0-9 _ - . : /
        NOTIFY_ON: "never" is not accepted; accepted: attention or always
        MAX_CONCURRENCY: "0" is not accepted; accepted: a number from 1, or 1% to 100%
        MAX_ERRORS: "101%" is not accepted; accepted: a number from 0, or 0% to 100%
        BUSY_WAIT_SECONDS: "241" is not accepted; accepted: whole seconds, 0 to 240
        MIN_MEMORY_MIB: "-1" is not accepted; accepted: whole MiB, 0 (off) to 1048576
        INSTANCE_TAG: "AgentRestart=after deployment" is not accepted; accepted: KEY=VALUE, such as AgentRestart=yes, a key of 1 to 128 and a value of 1 to 256 of a-z A-Z 0-9 + = . : / @ _ - (no blanks, and no = in the key)
        COVERED_ACCOUNTS: "123456789012, 210987654321" is not accepted; accepted: account ids of 12 digits with commas between them, such as 123456789012,210987654321
        DRY_RUN: "yes" is not accepted; accepted: true or false
        "#);
    }

    #[test]
    fn an_empty_optional_variable_is_the_default_and_an_empty_required_one_is_missing() {
        let problems = read(&[
            ("TOPIC_ARN", ""),
            ("DOCUMENT_NAME", "restart-agent"),
            ("MAX_ERRORS", ""),
        ])
        .unwrap_err();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].setting, TOPIC_ARN);
    }

    #[test]
    fn a_tag_has_a_key_and_a_value_without_blanks_or_wildcards() {
        let long = format!("AgentRestart={}", "v".repeat(256));
        for text in ["AgentRestart=yes", "team:a/b@c=1+1=2", &long] {
            assert_eq!(parse_tag(text).unwrap().to_string(), text);
        }
        let too_long = format!("AgentRestart={}", "v".repeat(257));
        for text in [
            "yes",
            "=yes",
            "AgentRestart=",
            "AgentRestart=a b",
            "Agent Restart=a",
            " a=b",
            "a=*",
            "a=b,c",
            "ä=b",
            &too_long,
        ] {
            assert_eq!(parse_tag(text), None, "{text}");
        }
    }

    #[test]
    fn accounts_are_ids_and_nothing_else() {
        let ids = |text| {
            let accounts = parse_accounts(text)?;
            Some(Vec::from_iter(accounts.iter().map(ToString::to_string)))
        };
        assert_eq!(ids(""), Some(Vec::new()));
        let two = "210987654321,123456789012,210987654321";
        assert_eq!(ids(two).unwrap(), ["123456789012", "210987654321"]);
        for text in [
            ",",
            "123456789012,",
            " 123456789012",
            "123456789012;210987654321",
            "1234-5678-9012",
            "12345678901",
            "all",
        ] {
            assert_eq!(ids(text), None, "{text}");
        }
    }

    #[test]
    fn rates_round_up_as_documented() {
        assert_eq!(Rate::Percent(50).of(3), 2);
        assert_eq!(Rate::Percent(10).of(3), 1);
        assert_eq!(Rate::Percent(0).of(3), 0);
        assert_eq!(Rate::Count(7).of(3), 7);
        for text in ["1", "9999999", "1%", "100%"] {
            assert!(parse_rate(text, 1).is_some(), "{text}");
        }
        for text in [
            "", "%", "0", "0%", "01", "+1", "1.5", "101%", "10000000", " 1",
        ] {
            assert!(parse_rate(text, 1).is_none(), "{text}");
        }
    }
}
