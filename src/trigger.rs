//! What an event asks for: the end of a pipeline's execution or of a deployment, or a request by hand. Everything
//! else is ignored with a reason, and what cannot be read is an error that names the field.

use aws_lambda_events::event::eventbridge::EventBridgeEvent;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clock::{Clock, Timestamp};
use crate::ids::{AccountId, Arn, NAME_FORM, Name, Region};
use crate::text::{plain, quoted};
use crate::wrapping::{DEPLOYMENT_EVENT, PIPELINE_EVENT, WrappingError, unwrapped};

type Object = Map<String, Value>;

/// The states in which an execution has ended, and how. One that did not succeed has deployed as well: an approval was
/// rejected after a stage that deploys, a newer execution overtook it, somebody stopped it.
const EXECUTION_ENDS: [(&str, Ended); 5] = [
    ("SUCCEEDED", Ended::Succeeded),
    ("FAILED", Ended::Otherwise),
    ("STOPPED", Ended::Otherwise),
    ("SUPERSEDED", Ended::Otherwise),
    ("CANCELED", Ended::Otherwise),
];
/// The same of a deployment: one often fails *because* an agent was deaf or out of memory.
const DEPLOYMENT_ENDS: [(&str, Ended); 3] = [
    ("SUCCESS", Ended::Succeeded),
    ("FAILURE", Ended::Otherwise),
    ("STOP", Ended::Otherwise),
];

/// How far ahead of our clock the `time` of a request may lie, in seconds: clocks differ a little, but a
/// time in the future would make every restart look too old.
const MAX_SECONDS_AHEAD: u64 = 150;

/// Where this function lives: what a request by hand means when it names no region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// Our own account.
    pub account: AccountId,
    /// Our own region.
    pub region: Region,
    /// Our own name, for the command that repeats an order by hand.
    pub function: String,
}

impl Home {
    /// Reads the ARN that Lambda gives with each invocation,
    /// `arn:aws:lambda:REGION:ACCOUNT:function:NAME`. `None` when it is none, as from local emulators.
    pub fn of_function(arn: &str) -> Option<Self> {
        let arn = Arn::read(arn)?;
        let function = arn.resource.strip_prefix("function:")?.split(':').next()?;
        Some(Self {
            account: AccountId::read(arn.account)?,
            region: Region::read(arn.region)?,
            function: function.to_owned(),
        })
    }
}

/// What to do with an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Trigger {
    /// Agents are to be restarted.
    Restart(Order),
    /// The event is none of ours, and why.
    Ignore(String),
}

/// An order to restart the agents of one or more deployment groups.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// What the order is about.
    #[serde(flatten)]
    pub subject: Subject,
    /// The account in which it happened.
    pub account: AccountId,
    /// The region in which it happened.
    pub region: Region,
    /// When it happened: the event's time (or that of its receipt, if it lies ahead of our clock), or the request's.
    pub time: Timestamp,
    /// Since when an agent counts as fresh, if a request says so; else what was deployed decides.
    #[serde(skip)]
    pub since: Option<Timestamp>,
    /// Plan only.
    #[serde(skip)]
    pub dry_run: bool,
}

/// The three kinds of order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(
    tag = "kind",
    rename_all = "lowercase",
    rename_all_fields = "camelCase"
)]
pub enum Subject {
    /// An execution of a pipeline has ended.
    Pipeline {
        /// The pipeline's name.
        pipeline: Name,
        /// The execution.
        execution_id: String,
        /// How it ended.
        #[serde(skip)]
        ended: Ended,
    },
    /// A deployment has ended.
    Deployment {
        /// The CodeDeploy application.
        application: Name,
        /// The deployment group.
        deployment_group: Name,
        /// The deployment.
        deployment_id: Name,
        /// How it ended.
        #[serde(skip)]
        ended: Ended,
    },
    /// Somebody, or a schedule, asked for it.
    Request {
        /// The CodeDeploy application.
        application: Name,
        /// The deployment group.
        deployment_group: Name,
        /// The deployment whose instances are meant; none means the last that ended and the last that succeeded.
        #[serde(skip_serializing_if = "Option::is_none")]
        deployment_id: Option<Name>,
    },
}

/// How an execution or a deployment ended, by its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Whatever it had to deploy is deployed.
    Succeeded,
    /// It failed, was stopped, overtaken or canceled: some of it may be deployed.
    Otherwise,
}

impl Subject {
    /// The application and the deployment group, when the order itself names them.
    pub fn group(&self) -> Option<(&Name, &Name)> {
        match self {
            Self::Pipeline { .. } => None,
            Self::Deployment {
                application,
                deployment_group,
                ..
            }
            | Self::Request {
                application,
                deployment_group,
                ..
            } => Some((application, deployment_group)),
        }
    }

    /// The order in a few words, for logs and messages.
    pub fn words(&self) -> String {
        match self {
            Self::Pipeline { pipeline, .. } => format!("pipeline {pipeline}"),
            Self::Deployment { deployment_id, .. } => format!("deployment {deployment_id}"),
            Self::Request {
                application,
                deployment_group,
                ..
            } => format!("{application}/{deployment_group} by hand"),
        }
    }

    /// What belongs together in a chat: messages about the same execution, deployment or group.
    pub fn thread(&self) -> String {
        match self {
            Self::Pipeline { execution_id, .. } => execution_id.clone(),
            Self::Deployment { deployment_id, .. } => deployment_id.to_string(),
            Self::Request {
                application,
                deployment_group,
                ..
            } => format!("{application}/{deployment_group}"),
        }
    }
}

/// An event that cannot be read. The invocation fails with it: a caller by hand sees it, and an event ends
/// in the dead-letter queue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// It comes in a wrapping that is not read.
    #[error(transparent)]
    Wrapping(#[from] WrappingError),
    /// The payload is an array, a number, text, or null.
    #[error(
        "the event is no JSON object: send an EventBridge event or a request such as {{\"application\":\"…\",\"deploymentGroup\":\"…\"}}"
    )]
    NoObject,
    /// Neither an EventBridge event nor a request.
    #[error(
        "the event has neither \"detail-type\" nor \"application\": send an EventBridge event or a request such as {{\"application\":\"…\",\"deploymentGroup\":\"…\"}}"
    )]
    NoKind,
    /// An event of ours with a field that is missing or unusable.
    #[error("{kind}: {problem}")]
    Field {
        /// The kind of event.
        kind: &'static str,
        /// The field, what is wrong with it, and what is accepted.
        problem: String,
    },
}

/// Reads an event.
///
/// # Errors
/// When it is no JSON object, wrapped in what is not read, of no kind, or of one of our kinds with a needed field missing
/// or unusable.
pub fn read(event: &Value, clock: &Clock, home: &Home) -> Result<Trigger, EventError> {
    let event = unwrapped(event)?;
    let Value::Object(event) = event.as_ref() else {
        return Err(EventError::NoObject);
    };
    match event.get("detail-type") {
        Some(Value::String(kind)) if kind == PIPELINE_EVENT => {
            when_ended(event, &EXECUTION_ENDS, "pipeline execution", |ended| {
                read_pipeline(event, ended, clock)
            })
        }
        Some(Value::String(kind)) if kind == DEPLOYMENT_EVENT => {
            when_ended(event, &DEPLOYMENT_ENDS, "deployment", |ended| {
                read_deployment(event, ended, clock)
            })
        }
        Some(other) => Ok(Trigger::Ignore(format!(
            "detail-type {} is neither \"{PIPELINE_EVENT}\" nor \"{DEPLOYMENT_EVENT}\"",
            shown(other)
        ))),
        None if event.contains_key("application") => read_request(event, clock, home),
        None => Err(EventError::NoKind),
    }
}

/// Reads the event only in a state that is an end: an event in another state may lack anything.
fn when_ended(
    event: &Object,
    ends: &[(&str, Ended)],
    what: &str,
    read: impl FnOnce(Ended) -> Result<Order, EventError>,
) -> Result<Trigger, EventError> {
    let state = event.get("detail").and_then(|detail| detail.get("state"));
    let is_it = |end: &str| state.is_some_and(|state| state == end);
    if let Some((_, ended)) = ends.iter().find(|(end, _)| is_it(end)) {
        return Ok(Trigger::Restart(read(*ended)?));
    }
    let state = state.map_or("missing".to_owned(), shown);
    let ends: Vec<&str> = ends.iter().map(|(end, _)| *end).collect();
    let ends = ends.join(", ");
    let reason = format!("the {what}'s detail.state is {state}; it has ended only in {ends}");
    Ok(Trigger::Ignore(reason))
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct PipelineDetail {
    pipeline: String,
    execution_id: String,
}

fn read_pipeline(event: &Object, ended: Ended, clock: &Clock) -> Result<Order, EventError> {
    let fields = Fields("pipeline event");
    let envelope: EventBridgeEvent<PipelineDetail> =
        fields.envelope(event, &["pipeline", "execution-id"])?;
    Ok(Order {
        account: fields.account("account", envelope.account.as_deref())?,
        region: fields.region("region", envelope.region.as_deref())?,
        time: fields.event_time(envelope.time.map(|time| time.timestamp()), clock)?,
        since: None,
        dry_run: false,
        subject: Subject::Pipeline {
            pipeline: fields.name("detail.pipeline", &envelope.detail.pipeline)?,
            execution_id: fields.execution_id(&envelope.detail.execution_id)?,
            ended,
        },
    })
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeploymentDetail {
    application: String,
    deployment_group: String,
    deployment_id: String,
    region: String,
}

fn read_deployment(event: &Object, ended: Ended, clock: &Clock) -> Result<Order, EventError> {
    let fields = Fields("deployment event");
    let envelope: EventBridgeEvent<DeploymentDetail> = fields.envelope(
        event,
        &["application", "deploymentGroup", "deploymentId", "region"],
    )?;
    let detail = &envelope.detail;
    Ok(Order {
        account: fields.account("account", envelope.account.as_deref())?,
        region: fields.region("detail.region", Some(&detail.region))?,
        time: fields.event_time(envelope.time.map(|time| time.timestamp()), clock)?,
        since: None,
        dry_run: false,
        subject: Subject::Deployment {
            application: fields.name("detail.application", &detail.application)?,
            deployment_group: fields.name("detail.deploymentGroup", &detail.deployment_group)?,
            deployment_id: fields.name("detail.deploymentId", &detail.deployment_id)?,
            ended,
        },
    })
}

/// The fields of a request by hand. Any other is refused: a mistyped `dryrun` must not restart a fleet.
const REQUEST_FIELDS: [&str; 6] = [
    "application",
    "deploymentGroup",
    "deploymentId",
    "region",
    "time",
    "dryRun",
];

fn read_request(event: &Object, clock: &Clock, home: &Home) -> Result<Trigger, EventError> {
    let fields = Fields("request");
    if let Some(unknown) = event
        .keys()
        .find(|key| !REQUEST_FIELDS.contains(&key.as_str()))
    {
        return Err(fields.problem(format!(
            "field {} is unknown; known are {}",
            quoted(unknown),
            REQUEST_FIELDS.join(", ")
        )));
    }
    let required = |name: &str| fields.name(name, &fields.text(event, name, name)?);
    let optional = |name: &str| match event.get(name) {
        None => Ok(None),
        Some(_) => fields.text(event, name, name).map(Some),
    };
    let deployment_id = optional("deploymentId")?
        .map(|id| fields.name("deploymentId", &id))
        .transpose()?;
    let since = optional("time")?
        .map(|time| fields.request_time(&time, clock.now()))
        .transpose()?;
    Ok(Trigger::Restart(Order {
        account: home.account.clone(),
        region: match optional("region")? {
            Some(region) => fields.region("region", Some(&region))?,
            None => home.region.clone(),
        },
        time: since.unwrap_or_else(|| clock.received_at()),
        since,
        dry_run: match event.get("dryRun") {
            None => false,
            Some(Value::Bool(dry_run)) => *dry_run,
            Some(other) => {
                let shown = shown(other);
                return Err(fields.problem(format!("field dryRun is {shown}, not true or false")));
            }
        },
        subject: Subject::Request {
            application: required("application")?,
            deployment_group: required("deploymentGroup")?,
            deployment_id,
        },
    }))
}

/// Checks of single fields, each with an error that names the field of this kind of event.
struct Fields(&'static str);

impl Fields {
    fn problem(&self, problem: String) -> EventError {
        EventError::Field {
            kind: self.0,
            problem,
        }
    }

    /// Reads the envelope with nothing but the fields we need: a real event's other fields have come as
    /// text, as integers and as floats, and must not stop us.
    fn envelope<T>(
        &self,
        event: &Object,
        needed: &[&str],
    ) -> Result<EventBridgeEvent<T>, EventError>
    where
        T: Serialize + for<'de> Deserialize<'de>,
    {
        let mut narrow = Map::new();
        narrow.insert("source".to_owned(), Value::String(String::new()));
        for name in ["detail-type", "account", "time", "region"] {
            let value = self.text(event, name, name)?;
            narrow.insert(name.to_owned(), Value::String(value));
        }
        let detail = match event.get("detail") {
            Some(Value::Object(detail)) => detail,
            _ => return Err(self.problem("field detail is no object".to_owned())),
        };
        let mut narrow_detail = Map::new();
        for name in needed {
            let value = self.text(detail, name, &format!("detail.{name}"))?;
            narrow_detail.insert((*name).to_owned(), Value::String(value));
        }
        narrow.insert("detail".to_owned(), Value::Object(narrow_detail));
        EventBridgeEvent::deserialize(Value::Object(narrow))
            .map_err(|error| self.problem(format!("field time: {error}")))
    }

    fn text(&self, object: &Object, name: &str, path: &str) -> Result<String, EventError> {
        match object.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.problem(format!("field {path} is {}, not text", shown(other)))),
            None => Err(self.problem(format!("field {path} is missing"))),
        }
    }

    fn account(&self, field: &str, value: Option<&str>) -> Result<AccountId, EventError> {
        let accepted = "an account id (12 digits)";
        self.checked(field, value.unwrap_or_default(), accepted, AccountId::read)
    }

    fn region(&self, field: &str, value: Option<&str>) -> Result<Region, EventError> {
        let accepted = "a region such as eu-west-1";
        self.checked(field, value.unwrap_or_default(), accepted, Region::read)
    }

    fn name(&self, field: &str, value: &str) -> Result<Name, EventError> {
        self.checked(field, value, &format!("a name ({NAME_FORM})"), Name::read)
    }

    /// CodePipeline's own pattern for an execution id: a UUID in hexadecimal digits.
    fn execution_id(&self, value: &str) -> Result<String, EventError> {
        self.checked("detail.execution-id", value, "a UUID", |id| {
            let groups: Vec<&str> = id.split('-').collect();
            let fits = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
                && groups
                    .iter()
                    .all(|group| group.chars().all(|c| c.is_ascii_hexdigit()));
            fits.then(|| id.to_owned())
        })
    }

    /// Nothing is told before it has happened: a time that lies ahead of our clock counts as that of the receipt.
    fn event_time(&self, seconds: Option<i64>, clock: &Clock) -> Result<Timestamp, EventError> {
        u64::try_from(seconds.unwrap_or(-1))
            .map(|seconds| Timestamp(seconds).min(clock.received_at()))
            .map_err(|_| self.problem("field time lies before 1970".to_owned()))
    }

    fn request_time(&self, value: &str, now: Timestamp) -> Result<Timestamp, EventError> {
        let accepted = "an RFC 3339 time such as 2026-11-21T10:00:00Z, 1970 or later";
        let time = Timestamp::parse(value).ok_or_else(|| {
            self.problem(format!("field time is {}, not {accepted}", quoted(value)))
        })?;
        if time.seconds_since(now) > MAX_SECONDS_AHEAD {
            return Err(self.problem(format!(
                "field time is {time}, more than {MAX_SECONDS_AHEAD} s after now ({now}): check the \
                 sender's clock, or leave it out"
            )));
        }
        Ok(time)
    }

    fn checked<T>(
        &self,
        field: &str,
        value: &str,
        accepted: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<T, EventError> {
        read(value).ok_or_else(|| {
            let shown = quoted(value);
            self.problem(format!("field {field} is {shown}, not {accepted}"))
        })
    }
}

/// A wrong value as an error shows it.
fn shown(value: &Value) -> String {
    plain(&value.to_string(), 80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_s_arn_says_where_it_lives() {
        let home =
            Home::of_function("arn:aws:lambda:eu-west-1:123456789012:function:restarter:live");
        let home = home.unwrap();
        assert_eq!(home.account.as_str(), "123456789012");
        assert_eq!(home.region.as_str(), "eu-west-1");
        assert_eq!(home.function, "restarter");
        for arn in [
            "restarter",
            "arn:aws:lambda:eu-west-1:123456789012:function",
            "arn:aws:lambda:eu-west-1:12345678901:function:restarter",
            "arn:aws:lambda:EU WEST:123456789012:function:restarter",
        ] {
            assert_eq!(Home::of_function(arn), None, "{arn}");
        }
    }
}
