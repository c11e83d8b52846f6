//! The AWS clients, per region, with the time limits of every call, and the one place where an SDK error
//! becomes words.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_ssm::config::retry::{RetryConfig, RetryPartition, TokenBucket};
use aws_sdk_ssm::config::timeout::TimeoutConfig;
use aws_sdk_ssm::error::{ProvideErrorMetadata, SdkError};

use crate::ec2;
use crate::ids::Region;
use crate::pace::Paced;
use crate::problem::{CallError, Code};
use crate::text::plain;

/// Connecting to an endpoint may take this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// One attempt of a call may take this long: an answer is at most so much older than its arrival.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts of one call, the first included.
const MAX_ATTEMPTS: u32 = 8;
/// The longest pause between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(20);
/// Characters of AWS's own error message that are kept.
const MAX_MESSAGE: usize = 400;

/// All clients of the function, made on demand for each region.
#[derive(Debug)]
pub struct Clients {
    config: SdkConfig,
    regions: Mutex<BTreeMap<Region, RegionClients>>,
}

/// The clients of one region. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct RegionClients {
    /// CodePipeline.
    pub codepipeline: aws_sdk_codepipeline::Client,
    /// CodeDeploy.
    pub codedeploy: aws_sdk_codedeploy::Client,
    /// Auto Scaling.
    pub autoscaling: aws_sdk_autoscaling::Client,
    /// Systems Manager, whose calls take turns.
    pub ssm: Paced<aws_sdk_ssm::Client>,
    /// EC2, of which one operation is asked.
    pub ec2: ec2::Client,
    /// SNS.
    pub sns: aws_sdk_sns::Client,
}

impl Clients {
    /// Clients over the given configuration (endpoints, credentials, HTTP client), with this crate's own
    /// retries and time limits.
    pub fn new(config: &SdkConfig) -> Self {
        let config = config
            .to_builder()
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(MAX_ATTEMPTS)
                    .with_max_backoff(MAX_BACKOFF),
            )
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                    .build(),
            )
            .build();
        Self {
            config,
            regions: Mutex::new(BTreeMap::new()),
        }
    }

    /// The region that the configuration names (Lambda's `AWS_REGION`).
    pub fn home_region(&self) -> Option<Region> {
        Region::read(self.config.region()?.as_ref())
    }

    /// The clients of a region.
    pub fn in_region(&self, region: &Region) -> RegionClients {
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        regions
            .entry(region.clone())
            .or_insert_with(|| self.build(region))
            .clone()
    }

    fn build(&self, region: &Region) -> RegionClients {
        let config = self
            .config
            .to_builder()
            .region(aws_config::Region::new(region.to_string()))
            .build();
        macro_rules! client {
            ($sdk:ident) => {
                $sdk::Client::from_conf(
                    $sdk::config::Builder::from(&config)
                        .retry_partition(without_budget())
                        .build(),
                )
            };
        }

        RegionClients {
            codepipeline: client!(aws_sdk_codepipeline),
            codedeploy: client!(aws_sdk_codedeploy),
            autoscaling: client!(aws_sdk_autoscaling),
            ssm: Paced::new(client!(aws_sdk_ssm)),
            ec2: ec2::Client::new(&config, region, without_budget()),
            sns: client!(aws_sdk_sns),
        }
    }
}

/// The SDK takes retries out of a budget that all clients of a process share and that does not refill by
/// itself: a region that is down would leave none for the report's `Publish`. The attempts of each call are
/// limited already.
fn without_budget() -> RetryPartition {
    RetryPartition::custom("codedeploy-agent-restarter")
        .token_bucket(TokenBucket::unlimited())
        .build()
}

impl CallError {
    /// Words for an SDK error. Its own `Display` says only "service error".
    pub fn new<E, R>(
        operation: &'static str,
        resource: impl Into<String>,
        error: &SdkError<E, R>,
    ) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        R: std::fmt::Debug,
    {
        let (code, message) = match error {
            SdkError::ServiceError(service) => (
                Code::Aws(service.err().code().unwrap_or("UnknownError").to_owned()),
                service
                    .err()
                    .message()
                    .map_or_else(|| innermost(service.err()), str::to_owned),
            ),
            SdkError::TimeoutError(_) => (Code::Timeout, "no answer in time".to_owned()),
            SdkError::DispatchFailure(failure) => (
                Code::NoConnection,
                failure.as_connector_error().map_or_else(
                    || "the endpoint was not reached".to_owned(),
                    |e| innermost(e),
                ),
            ),
            SdkError::ResponseError(_) => (Code::UnreadableAnswer, chain(error)),
            _ => (Code::InvalidRequest, chain(error)),
        };
        Self {
            operation,
            resource: resource.into(),
            code,
            message: plain(&message, MAX_MESSAGE),
        }
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

fn chain<E, R>(error: &SdkError<E, R>) -> String
where
    E: std::error::Error + 'static,
    R: std::fmt::Debug,
{
    error.source().map_or_else(|| error.to_string(), innermost)
}
