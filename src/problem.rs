//! A call that failed for good, or an answer that makes no sense: what it is, in which step, and what to do.

use crate::ids::AccountId;
use crate::text::worded;

worded! {
    /// The steps of one event that can meet a problem.
    pub enum Step {
        /// Finding out which deployments of which groups are meant.
        Deployments = "deployments",
        /// Waiting until no other deployment of the group runs.
        Quiet = "quiet",
        /// Finding the group's instances and where each stands.
        Fleet = "fleet",
        /// Sending the restart document.
        Send = "send",
        /// Asking what became of it.
        Poll = "poll",
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Code {
    /// AWS's own error code.
    Aws(String),
    /// No answer in time.
    Timeout,
    /// The endpoint was not reached.
    NoConnection,
    /// An answer that is none, or lacks what AWS always gives.
    UnreadableAnswer,
    /// The SDK could not even write the call.
    InvalidRequest,
    /// AWS gives page after page.
    TooManyPages,
    /// The event, or an action of the pipeline, belongs to this account, which is not the function's, nor one that is
    /// known to have an installation of its own.
    OtherAccount(AccountId),
    /// CodePipeline's list of actions does not settle; those that it lists go on.
    ActionsNotListed,
    /// An action that has ended lacks what a deployment needs.
    IncompleteAction,
    /// The deployment belongs to another group.
    ForeignDeployment,
    /// The group has no deployment that could be meant, and no members.
    NoDeployment,
    /// A deployment without targets, of a group without members.
    NoTargets,
    /// Nobody in the group has the tag that an instance must have to be sent to.
    NobodyTagged,
    /// The deployment group names Auto Scaling groups that do not exist.
    AutoScalingGroupMissing,
    /// The function's own time was over.
    NoTime,
}

impl Code {
    /// The word in JSON, messages and logs.
    pub fn word(&self) -> &str {
        match self {
            Self::Aws(code) => code,
            Self::Timeout => "Timeout",
            Self::NoConnection => "NoConnection",
            Self::UnreadableAnswer => "UnreadableAnswer",
            Self::InvalidRequest => "InvalidRequest",
            Self::TooManyPages => "TooManyPages",
            Self::OtherAccount(_) => "OtherAccount",
            Self::ActionsNotListed => "ActionsNotListed",
            Self::IncompleteAction => "IncompleteAction",
            Self::ForeignDeployment => "ForeignDeployment",
            Self::NoDeployment => "NoDeployment",
            Self::NoTargets => "NoTargets",
            Self::NobodyTagged => "NobodyTagged",
            Self::AutoScalingGroupMissing => "AutoScalingGroupMissing",
            Self::NoTime => "NoTime",
        }
    }

    /// Whether AWS may have carried the call out although we saw no answer.
    pub fn may_have_arrived(&self) -> bool {
        match self {
            Self::Timeout | Self::NoConnection | Self::UnreadableAnswer => true,
            Self::Aws(_)
            | Self::InvalidRequest
            | Self::TooManyPages
            | Self::OtherAccount(_)
            | Self::ActionsNotListed
            | Self::IncompleteAction
            | Self::ForeignDeployment
            | Self::NoDeployment
            | Self::NoTargets
            | Self::NobodyTagged
            | Self::AutoScalingGroupMissing
            | Self::NoTime => false,
        }
    }

    /// Whether the function's role may not make the call.
    pub fn is_denied(&self) -> bool {
        const DENIED: [&str; 4] = [
            "AccessDenied",
            "AccessDeniedException",
            "UnauthorizedOperation",
            "AuthorizationError",
        ];
        matches!(self, Self::Aws(code) if DENIED.contains(&code.as_str()))
    }

    /// Whether Systems Manager refuses one of the instances that a call names, without saying which.
    pub fn refuses_an_id(&self) -> bool {
        matches!(self, Self::Aws(code) if code == "InvalidInstanceId")
    }

    /// Whether Systems Manager cannot send the document that a call names: those of another platform have another.
    pub fn refuses_the_document(&self) -> bool {
        const REFUSALS: [&str; 3] = [
            "InvalidDocument",
            "InvalidDocumentVersion",
            "UnsupportedPlatformType",
        ];
        matches!(self, Self::Aws(code) if REFUSALS.contains(&code.as_str()))
    }

    /// Whether the account's rate of calls is used up.
    pub fn is_throttling(&self) -> bool {
        matches!(self, Self::Aws(code) if code.contains("Throttl") || code == "RequestLimitExceeded")
    }

    /// Whether it may be gone in a while without anybody's doing: too many calls, a service that is down, an
    /// answer that is late. All else needs a person.
    pub fn time_may_cure(&self) -> bool {
        /// Codes with which AWS answers a fault of its own (each service's "Common errors").
        const FAULTS: [&str; 7] = [
            "InternalFailure",
            "InternalServerError",
            "InternalError",
            "InternalServiceError",
            "ServiceUnavailable",
            "ServiceUnavailableException",
            "Unavailable",
        ];
        match self {
            Self::Aws(code) => self.is_throttling() || FAULTS.contains(&code.as_str()),
            Self::Timeout
            | Self::NoConnection
            | Self::UnreadableAnswer
            | Self::ActionsNotListed
            | Self::NoTime => true,
            Self::InvalidRequest
            | Self::TooManyPages
            | Self::OtherAccount(_)
            | Self::IncompleteAction
            | Self::ForeignDeployment
            | Self::NoDeployment
            | Self::NoTargets
            | Self::NobodyTagged
            | Self::AutoScalingGroupMissing => false,
        }
    }
}

/// A call that got no usable answer after all its retries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operation} ({resource}): {}: {message}", code.word())]
pub struct CallError {
    /// The operation as in an IAM policy: `ssm:SendCommand`.
    pub operation: &'static str,
    /// What was asked for, for people: a name or an id.
    pub resource: String,
    /// What is wrong.
    pub code: Code,
    /// AWS's message, or the innermost cause.
    pub message: String,
}

impl CallError {
    /// An answer that lacks what AWS always gives.
    pub fn incomplete(operation: &'static str, resource: impl Into<String>, lacks: &str) -> Self {
        Self {
            operation,
            resource: resource.into(),
            code: Code::UnreadableAnswer,
            message: format!("the answer holds no {lacks}"),
        }
    }

    /// A step that ran into its own time limit.
    pub fn out_of_time(operation: &'static str, resource: impl Into<String>) -> Self {
        Self {
            operation,
            resource: resource.into(),
            code: Code::Timeout,
            message: "no answer within this step's time limit".to_owned(),
        }
    }
}

/// What kept a group, or the event, from being treated as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The step that met it.
    pub step: Step,
    /// What is wrong.
    pub code: Code,
    /// What happened.
    pub message: String,
    /// The call that failed, if it is one.
    pub call: Option<Call>,
}

/// What was asked for, as in [`CallError`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The operation as in an IAM policy.
    pub operation: &'static str,
    /// A name or an id, for people.
    pub resource: String,
}

impl Problem {
    /// A call that failed in a step.
    pub fn of_call(step: Step, error: &CallError) -> Self {
        Self {
            step,
            code: error.code.clone(),
            message: format!(
                "{} ({}): {}",
                error.operation, error.resource, error.message
            ),
            call: Some(Call {
                operation: error.operation,
                resource: error.resource.clone(),
            }),
        }
    }

    /// A step that ran into its time limit.
    pub fn out_of_time(step: Step) -> Self {
        Self::new(
            step,
            Code::Timeout,
            "AWS did not give the answers within this step's time limit",
        )
    }

    /// A problem that is no failed call.
    pub fn new(step: Step, code: Code, message: impl Into<String>) -> Self {
        Self {
            step,
            code,
            message: message.into(),
            call: None,
        }
    }
}

/// Problems in one place, each once, in the order in which they were met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds one, unless it is known already.
    pub fn note(&mut self, problem: Problem) {
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl Extend<Problem> for Problems {
    fn extend<I: IntoIterator<Item = Problem>>(&mut self, problems: I) {
        problems.into_iter().for_each(|problem| self.note(problem));
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_cures_what_is_aws_s_own_fault_and_no_denial() {
        let aws = |code: &str| Code::Aws(code.to_owned());
        for code in ["ThrottlingException", "Throttling", "InternalFailure"] {
            assert!(aws(code).time_may_cure(), "{code}");
        }
        for code in ["AccessDeniedException", "InvalidDocument"] {
            assert!(!aws(code).time_may_cure(), "{code}");
        }
    }
}
