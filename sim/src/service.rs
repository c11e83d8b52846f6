//! What the services have in common: who answers, injected errors, pages, and the reading of input.

use serde_json::{Map, Value};

use crate::host::Runs;
use crate::state::{Fault, FaultKind, Region, State};
use crate::wire::{Asked, Failure, Service, hash};
use crate::{autoscaling, codedeploy, codepipeline, ec2, sns, ssm};

/// A service's successful answer.
pub(crate) type Answered = Result<Map<String, Value>, Failure>;

/// A service's successful answer, as it goes to the wire.
pub(crate) enum Output {
    /// To be written.
    Members(Map<String, Value>),
    /// JSON already.
    Written(String),
}

impl Output {
    pub(crate) fn in_json(self) -> String {
        match self {
            Self::Members(members) => serde_json::to_string(&members).unwrap_or_default(),
            Self::Written(text) => text,
        }
    }

    pub(crate) fn members(self) -> Map<String, Value> {
        match self {
            Self::Members(members) => members,
            Self::Written(text) => serde_json::from_str(&text).unwrap_or_default(),
        }
    }
}

/// What a service may read and change while it answers one call.
pub(crate) struct Context<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) runs: &'a mut Runs,
    pub(crate) region: &'a str,
    /// Now, in seconds since the world's start.
    pub(crate) at: f64,
    /// The world's start in epoch seconds.
    pub(crate) start: f64,
}

impl Context<'_> {
    /// The called region; one that the data does not name is empty.
    pub(crate) fn here(&mut self) -> &mut Region {
        self.state
            .regions
            .entry(self.region.to_owned())
            .or_default()
    }

    /// A relative time in epoch seconds, to the millisecond as AWS writes it.
    pub(crate) fn epoch(&self, time: f64) -> f64 {
        ((self.start + time) * 1000.0).round() / 1000.0
    }
}

/// Lets the service that was called answer.
pub(crate) fn answer(
    context: &mut Context<'_>,
    service: Service,
    asked: &Asked,
) -> Result<Output, Failure> {
    let input = Input {
        members: &asked.params,
        service,
    };
    if (service, asked.operation.as_str()) == (Service::Ssm, "ListCommandInvocations") {
        return ssm::list_command_invocations(context, &input).map(Output::Written);
    }
    let members = match (service, asked.operation.as_str()) {
        (Service::CodePipeline, "ListActionExecutions") => {
            codepipeline::list_action_executions(context, &input)
        }
        (Service::CodeDeploy, "GetDeployment") => codedeploy::get_deployment(context, &input),
        (Service::CodeDeploy, "BatchGetDeployments") => {
            codedeploy::batch_get_deployments(context, &input)
        }
        (Service::CodeDeploy, "GetDeploymentGroup") => {
            codedeploy::get_deployment_group(context, &input)
        }
        (Service::CodeDeploy, "ListDeployments") => codedeploy::list_deployments(context, &input),
        (Service::CodeDeploy, "ListDeploymentTargets") => {
            codedeploy::list_deployment_targets(context, &input)
        }
        (Service::AutoScaling, "DescribeAutoScalingGroups") => {
            autoscaling::describe_groups(context, &input)
        }
        (Service::AutoScaling, "DescribeAutoScalingInstances") => {
            autoscaling::describe_instances(context, &input)
        }
        (Service::Ssm, "DescribeInstanceInformation") => {
            ssm::describe_instance_information(context, &input)
        }
        (Service::Ssm, "SendCommand") => ssm::send_command(context, &input),
        (Service::Sns, "Publish") => sns::publish(context, &input),
        (Service::Ec2, "DescribeInstances") => ec2::describe_instances(context, &input),
        (Service::AutoScaling | Service::Sns | Service::Ec2, other) => Err(Failure::new(
            "InvalidAction",
            format!("The simulation has no operation {other} of this service"),
        )),
        (_, other) => Err(Failure::new(
            "UnknownOperationException",
            format!("The simulation has no operation {other} of this service"),
        )),
    };
    members.map(Output::Members)
}

/// The fault that this call meets, if any; it counts the call. `next_page` says that the call has a token.
pub(crate) fn next_fault(
    faults: &mut [Fault],
    operation: &str,
    region: &str,
    next_page: bool,
) -> Option<Fault> {
    let meets = |fault: &&mut Fault| {
        fault.operation == operation
            && fault.times > 0
            && fault.region.as_deref().is_none_or(|name| name == region)
            && (next_page || fault.kind() != FaultKind::ExpiredToken)
    };
    for fault in faults
        .iter_mut()
        .filter_map(|fault| Some(fault).filter(meets))
    {
        if fault.after > 0 {
            fault.after -= 1;
        } else {
            fault.times -= 1;
            return Some(fault.clone());
        }
    }
    None
}

/// Whether a call asks for a further page.
pub(crate) fn is_next_page(params: &Map<String, Value>) -> bool {
    ["nextToken", "NextToken"]
        .iter()
        .any(|name| params.get(*name).is_some_and(|token| !token.is_null()))
}

/// The error that a fault stands for.
pub(crate) fn injected(fault: &Fault, service: Service) -> Failure {
    let usual = match (fault.kind(), service) {
        (FaultKind::ExpiredToken, Service::Ssm | Service::AutoScaling | Service::Ec2) => {
            "InvalidNextToken"
        }
        (FaultKind::ExpiredToken, _) => "InvalidNextTokenException",
        (_, Service::AutoScaling | Service::Sns) => "Throttling",
        (_, Service::Ec2) => "RequestLimitExceeded",
        _ => "ThrottlingException",
    };
    let code = fault.code.as_deref().unwrap_or(usual);
    let message = fault.message.clone().unwrap_or_else(|| match code {
        "ThrottlingException" | "Throttling" => "Rate exceeded".to_owned(),
        "RequestLimitExceeded" => "Request limit exceeded.".to_owned(),
        "InvalidNextToken" | "InvalidNextTokenException" => "The next token has expired".to_owned(),
        code => format!("{code} (injected)"),
    });
    let mut failure = Failure::new(code, message);
    failure.status = fault.status.unwrap_or(failure.status);
    failure
}

/// A call's parameters. A member of the wrong type is an error, as it is at AWS; an unknown one is ignored.
pub(crate) struct Input<'a> {
    members: &'a Map<String, Value>,
    service: Service,
}

impl<'a> Input<'a> {
    /// A structure inside the input, to be read in the same way.
    pub(crate) fn structure(&self, name: &str) -> Result<Option<Input<'a>>, Failure> {
        Ok(self.map(name)?.map(|members| Input {
            members,
            service: self.service,
        }))
    }

    /// The structures of a list.
    pub(crate) fn structures(&self, name: &str) -> Result<Vec<Input<'a>>, Failure> {
        self.list(name)?
            .iter()
            .map(|item| match item {
                Value::Object(members) => Ok(Input {
                    members,
                    service: self.service,
                }),
                _ => Err(self.malformed(name)),
            })
            .collect()
    }

    /// The names of all members.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.members.keys().map(String::as_str)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.members.get(name).is_some_and(|value| !value.is_null())
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>, Failure> {
        match self.members.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.malformed(name)),
        }
    }

    /// An integer; the query protocol writes it as text.
    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>, Failure> {
        match self.members.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if self.is_query() => text
                .parse()
                .map(Some)
                .map_err(|_not_a_number| self.malformed(name)),
            Some(value) => value.as_i64().map(Some).ok_or_else(|| self.malformed(name)),
        }
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, Failure> {
        match self.members.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            Some(Value::String(text)) if self.is_query() => text
                .parse()
                .map(Some)
                .map_err(|_not_a_boolean| self.malformed(name)),
            Some(_) => Err(self.malformed(name)),
        }
    }

    /// A timestamp in epoch seconds, as JSON 1.1 writes it.
    pub(crate) fn timestamp(&self, name: &str) -> Result<Option<f64>, Failure> {
        match self.members.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| self.malformed(name)),
        }
    }

    /// A list of texts; `None` when it was not given.
    pub(crate) fn texts(&self, name: &str) -> Result<Option<Vec<&'a str>>, Failure> {
        if !self.has(name) {
            return Ok(None);
        }
        self.list(name)?
            .iter()
            .map(|item| item.as_str().ok_or_else(|| self.malformed(name)))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    pub(crate) fn map(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, Failure> {
        match self.members.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(members)) => Ok(Some(members)),
            Some(_) => Err(self.malformed(name)),
        }
    }

    /// A map of lists of texts.
    pub(crate) fn map_of_texts(&self, name: &str) -> Result<Vec<(&'a str, Vec<&'a str>)>, Failure> {
        let Some(members) = self.map(name)? else {
            return Ok(Vec::new());
        };
        let inside = Input {
            members,
            service: self.service,
        };
        members
            .keys()
            .map(|key| Ok((key.as_str(), inside.texts(key)?.unwrap_or_default())))
            .collect()
    }

    /// The size of a page: within AWS's limits what the caller asks for, which is a maximum, less what the
    /// world's pages fall short of it; or else the world's own default.
    pub(crate) fn page_size(
        &self,
        name: &str,
        range: (i64, i64),
        default: usize,
        shortfall: usize,
    ) -> Result<usize, Failure> {
        let Some(size) = self.integer(name)? else {
            return Ok(default.max(1));
        };
        if size < range.0 {
            return Err(self.refused(
                name,
                &size.to_string(),
                &format!(
                    "Member must have value greater than or equal to {}",
                    range.0
                ),
            ));
        }
        if size > range.1 {
            return Err(self.refused(
                name,
                &size.to_string(),
                &format!("Member must have value less than or equal to {}", range.1),
            ));
        }
        usize::try_from(size)
            .map(|size| size.saturating_sub(shortfall).max(1))
            .map_err(|_negative| self.malformed(name))
    }

    /// The error for a value that breaks a constraint of the model.
    pub(crate) fn refused(&self, name: &str, value: &str, constraint: &str) -> Failure {
        let mut member = name.to_owned();
        member[..1].make_ascii_lowercase();
        let message = format!(
            "1 validation error detected: Value '{value}' at '{member}' failed to satisfy constraint: {constraint}"
        );
        match self.service {
            Service::AutoScaling => Failure::new("ValidationError", message),
            Service::Sns => Failure::new("InvalidParameter", format!("Invalid parameter: {name}")),
            Service::Ec2 => Failure::new(
                "InvalidParameterValue",
                format!("Value ( {value} ) for parameter {member} is invalid. {constraint}"),
            ),
            _ => Failure::new("ValidationException", message),
        }
    }

    fn list(&self, name: &str) -> Result<&'a [Value], Failure> {
        match self.members.get(name) {
            None | Some(Value::Null) => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            // An empty list of the query protocol is `Name=`.
            Some(Value::String(text)) if self.is_query() && text.is_empty() => Ok(&[]),
            Some(_) => Err(self.malformed(name)),
        }
    }

    fn is_query(&self) -> bool {
        matches!(
            self.service,
            Service::AutoScaling | Service::Sns | Service::Ec2
        )
    }

    fn malformed(&self, name: &str) -> Failure {
        if self.service == Service::Ec2 {
            Failure::new(
                "InvalidParameterValue",
                format!("Unexpected value for {name}"),
            )
        } else if self.is_query() {
            Failure::new("MalformedInput", format!("Unexpected value for {name}"))
        } else {
            Failure::new(
                "SerializationException",
                format!("Unexpected type of {name}"),
            )
        }
    }
}

/// One page of a list.
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) next: Option<String>,
}

/// Cuts the page after `token` out of `items`. A token belongs to one operation and one query, holds
/// the place of the last item seen, and is refused (`None`) when it is not one of ours.
pub(crate) fn page<T>(
    items: Vec<T>,
    size: usize,
    token: Option<&str>,
    query: &str,
) -> Option<Page<T>> {
    let from = match token {
        None => 0,
        Some(token) => place(token, query)?,
    };
    let next = (from + size < items.len()).then(|| token_for(from + size, query));
    Some(Page {
        items: items.into_iter().skip(from).take(size).collect(),
        next,
    })
}

fn token_for(place: usize, query: &str) -> String {
    let seal = hash(&format!("{query}/{place}"));
    let hidden = (place as u64) ^ (hash(query) >> 40);
    format!("{seal:016x}{hidden:08x}")
}

fn place(token: &str, query: &str) -> Option<usize> {
    let hidden = u64::from_str_radix(token.get(16..)?, 16).ok()?;
    let place = usize::try_from(hidden ^ (hash(query) >> 40)).ok()?;
    (token_for(place, query) == token).then_some(place)
}

/// An object without the members that are null: AWS leaves out what there is none of.
pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .collect(),
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_query_only() {
        let first = page((0..25).collect(), 10, None, "ListDeployments of a").unwrap();
        let token = first.next.unwrap();
        let second = page((0..25).collect(), 10, Some(&token), "ListDeployments of a").unwrap();
        assert_eq!(second.items, (10..20).collect::<Vec<_>>());
        assert!(
            page(
                (0..25).collect::<Vec<_>>(),
                10,
                Some(&token),
                "ListDeployments of b"
            )
            .is_none()
        );
        assert!(page(vec![0], 10, Some("10"), "ListDeployments of a").is_none());
        let last = page(
            (0..25).collect(),
            10,
            second.next.as_deref(),
            "ListDeployments of a",
        )
        .unwrap();
        assert_eq!((last.items.len(), last.next), (5, None));
    }

    #[test]
    fn a_fault_is_used_up() {
        let mut faults = vec![Fault {
            operation: "Publish".to_owned(),
            times: 1,
            after: 1,
            ..Fault::default()
        }];
        assert!(next_fault(&mut faults, "SendCommand", "r", false).is_none());
        assert!(next_fault(&mut faults, "Publish", "r", false).is_none());
        assert_eq!(
            injected(
                &next_fault(&mut faults, "Publish", "r", false).unwrap(),
                Service::Sns
            )
            .message,
            "Rate exceeded"
        );
        assert!(next_fault(&mut faults, "Publish", "r", false).is_none());
    }

    #[test]
    fn only_a_further_page_has_a_token_that_can_expire() {
        let mut faults = vec![Fault {
            operation: "ListDeployments".to_owned(),
            kind: FaultKind::ExpiredToken,
            ..Fault::default()
        }];
        assert!(next_fault(&mut faults, "ListDeployments", "r", false).is_none());
        let met = next_fault(&mut faults, "ListDeployments", "r", true).unwrap();
        assert_eq!(
            injected(&met, Service::CodeDeploy).code,
            "InvalidNextTokenException"
        );
    }
}
