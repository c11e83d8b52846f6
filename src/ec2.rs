//! EC2 is asked one thing: in which state instances are, and which tags they have. That takes `ec2:DescribeInstances`, which is made here of the
//! parts that the SDK's clients are made of, because the client for all of EC2's operations costs as much to build as
//! everything else together (CONTRIBUTING.md has the numbers). Retries, time limits, signing and endpoint variables
//! are those of the other clients.

use std::collections::BTreeMap;
use std::fmt;

use aws_config::SdkConfig;
use aws_runtime::auth::SigV4OperationSigningConfig;
use aws_runtime::auth::sigv4::{SCHEME_ID, SigV4AuthScheme};
use aws_runtime::invocation_id::InvocationIdInterceptor;
use aws_runtime::recursion_detection::RecursionDetectionInterceptor;
use aws_runtime::request_info::RequestInfoInterceptor;
use aws_runtime::retries::classifiers::AwsErrorCodeClassifier;
use aws_runtime::service_clock_skew::{ServiceClockSkewClassifier, ServiceClockSkewInterceptor};
use aws_runtime::user_agent::{ApiMetadata, UserAgentInterceptor};
use aws_smithy_query::QueryWriter;
use aws_smithy_runtime::client::orchestrator::operation::Operation;
use aws_smithy_runtime::client::retries::RetryPartition;
use aws_smithy_runtime::client::retries::classifiers::{
    HttpStatusCodeClassifier, TransientErrorClassifier,
};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::auth::AuthSchemeOptionResolverParams;
use aws_smithy_runtime_api::client::auth::static_resolver::StaticAuthSchemeOptionResolver;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse, OrchestratorError};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponentsBuilder;
use aws_smithy_runtime_api::client::runtime_plugin::StaticRuntimePlugin;
use aws_smithy_types::Number;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::Layer;
use aws_smithy_types::error::ErrorMetadata;
use aws_smithy_xml::decode::{Document, ScopedDecoder, XmlDecodeError, try_data};
use aws_types::SigningName;
use aws_types::region::SigningRegion;
use aws_types::service_config::ServiceConfigKey;
use futures_util::future::try_join_all;

use crate::ids::{InstanceId, Region};
use crate::paging::pages;
use crate::problem::CallError;

const OPERATION: &str = "ec2:DescribeInstances";
/// The version of EC2's API.
const VERSION: &str = "2016-11-15";
/// Values in the filters of one call (`FilterLimitExceeded` of
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>).
const BATCH: usize = 200;
/// Instances on one page, the most that EC2 gives: it may cut a page before it filters
/// (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html>).
const PAGE: u64 = 1000;
/// Host names end in `amazonaws.com` but for the regions that begin so
/// (<https://github.com/boto/botocore/blob/develop/botocore/data/partitions.json>).
const SUFFIXES: [(&str, &str); 6] = [
    ("cn-", "amazonaws.com.cn"),
    ("eusc-", "amazonaws.eu"),
    ("us-iso-", "c2s.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("us-isof-", "csp.hci.ic.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
];

/// The state of an instance (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceState.html>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It starts.
    Pending,
    /// It runs.
    Running,
    /// It ends for good.
    ShuttingDown,
    /// It has ended for good. EC2 tells so for about an hour, and does not know it then.
    Terminated,
    /// It stops, and may be started again.
    Stopping,
    /// It has stopped, and may be started again.
    Stopped,
    /// A state that is newer than this function.
    Unknown(String),
}

impl State {
    /// Reads EC2's word.
    pub fn read(word: &str) -> Self {
        match word {
            "pending" => Self::Pending,
            "running" => Self::Running,
            "shutting-down" => Self::ShuttingDown,
            "terminated" => Self::Terminated,
            "stopping" => Self::Stopping,
            "stopped" => Self::Stopped,
            other => Self::Unknown(other.to_owned()),
        }
    }

    /// EC2's word.
    pub fn word(&self) -> &str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Unknown(word) => word,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What EC2 says of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The state that it is in.
    pub state: State,
    /// Its tags: values by key.
    pub tags: BTreeMap<String, String>,
}

/// What EC2 says of each of the instances. Those that it does not know (any more) are left out.
///
/// # Errors
/// The first call's that failed.
pub async fn instances(
    client: &Client,
    ids: &[InstanceId],
) -> Result<BTreeMap<InstanceId, Instance>, CallError> {
    let batches = ids.chunks(BATCH).map(|batch| instances_of(client, batch));
    let found = try_join_all(batches).await?;
    Ok(found.into_iter().flatten().collect())
}

async fn instances_of(
    client: &Client,
    ids: &[InstanceId],
) -> Result<Vec<(InstanceId, Instance)>, CallError> {
    let resource = &format!("{} instances", ids.len());
    pages(OPERATION, |token| async move {
        let question = Question {
            ids: ids.to_vec(),
            token,
        };
        let page = client
            .describe_instances
            .invoke(question)
            .await
            .map_err(|error| CallError::new(OPERATION, resource, &error))?;
        Ok((page.instances, page.next))
    })
    .await
}

/// The client of one region. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Client {
    describe_instances: Operation<Question, Page, ErrorMetadata>,
}

#[derive(Debug)]
struct Question {
    ids: Vec<InstanceId>,
    token: Option<String>,
}

#[derive(Debug, Default, PartialEq)]
struct Page {
    instances: Vec<(InstanceId, Instance)>,
    next: Option<String>,
}

impl Client {
    /// A client over the given configuration (endpoints, credentials, HTTP client, retries, time limits). Of the
    /// configuration's endpoints, those for FIPS and dual stack are not known here.
    pub fn new(config: &SdkConfig, region: &Region, retries: RetryPartition) -> Self {
        // As in the SDK's generated clients; what the configuration does not say has their defaults.
        let mut layer = Layer::new("ec2");
        layer
            .store_put(retries)
            .store_put(ApiMetadata::new("ec2", env!("CARGO_PKG_VERSION")))
            .store_put(AuthSchemeOptionResolverParams::new(()))
            .store_put(SigV4OperationSigningConfig {
                region: Some(SigningRegion::from(aws_config::Region::new(
                    region.to_string(),
                ))),
                name: Some(SigningName::from_static("ec2")),
                ..SigV4OperationSigningConfig::default()
            });
        let mut parts = RuntimeComponentsBuilder::new("ec2")
            .with_http_client(config.http_client())
            .with_sleep_impl(config.sleep_impl())
            .with_time_source(config.time_source())
            .with_identity_cache(config.identity_cache())
            .with_auth_scheme(SigV4AuthScheme::new())
            .with_auth_scheme_option_resolver(Some(StaticAuthSchemeOptionResolver::new(vec![
                SCHEME_ID,
            ])))
            .with_interceptor(ServiceClockSkewInterceptor::new())
            .with_interceptor(RequestInfoInterceptor::new())
            .with_interceptor(UserAgentInterceptor::new())
            .with_interceptor(InvocationIdInterceptor::new())
            .with_interceptor(RecursionDetectionInterceptor::new())
            .with_retry_classifier(HttpStatusCodeClassifier::default())
            .with_retry_classifier(TransientErrorClassifier::<ErrorMetadata>::new())
            .with_retry_classifier(AwsErrorCodeClassifier::<ErrorMetadata>::new())
            .with_retry_classifier(ServiceClockSkewClassifier::<ErrorMetadata>::new());
        if let Some(credentials) = config.credentials_provider() {
            parts.set_identity_resolver(SCHEME_ID, credentials);
        }
        let mut operation = Operation::builder()
            .service_name("EC2")
            .operation_name("DescribeInstances")
            .endpoint_url(&endpoint(config, region))
            .with_connection_poisoning()
            .runtime_plugin(
                StaticRuntimePlugin::new()
                    .with_config(layer.freeze())
                    .with_runtime_components(parts),
            );
        if let Some(version) = config.behavior_version() {
            operation = operation.behavior_version(version);
        }
        if let Some(retry) = config.retry_config() {
            operation = operation.standard_retry(retry);
        }
        if let Some(timeouts) = config.timeout_config() {
            operation = operation.timeout_config(timeouts.clone());
        }
        Self {
            describe_instances: operation.serializer(written).deserializer(read).build(),
        }
    }
}

/// Where EC2 is: what the program says, else `AWS_ENDPOINT_URL_EC2`, else `AWS_ENDPOINT_URL`, else the region's own.
fn endpoint(config: &SdkConfig, region: &Region) -> String {
    let of_service = || {
        let key = ServiceConfigKey::builder()
            .service_id("EC2")
            .env("AWS_ENDPOINT_URL")
            .profile("endpoint_url")
            .build();
        config.service_config()?.load_config(key.ok()?)
    };
    let set = config.endpoint_url().map(str::to_owned);
    let set = if config.get_origin("endpoint_url").is_client_config() {
        set
    } else {
        of_service().or(set)
    };
    set.unwrap_or_else(|| {
        let starts = |(start, _): &&(&str, &str)| region.as_str().starts_with(start);
        let suffix = SUFFIXES.iter().find(starts);
        let suffix = suffix.map_or("amazonaws.com", |(_, suffix)| suffix);
        format!("https://ec2.{region}.{suffix}")
    })
}

/// EC2's dialect of the query protocol (<https://smithy.io/2.0/aws/protocols/aws-ec2-query-protocol.html>).
fn written(question: Question) -> Result<HttpRequest, BoxError> {
    let mut body = String::new();
    let mut writer = QueryWriter::new(&mut body, "DescribeInstances", VERSION);
    writer.prefix("Filter.1.Name").string("instance-id");
    let filter = writer.prefix("Filter.1.Value");
    let mut values = filter.start_list(true, None);
    for id in &question.ids {
        values.entry().string(id.as_str());
    }
    values.finish();
    writer.prefix("MaxResults").number(Number::PosInt(PAGE));
    if let Some(token) = &question.token {
        writer.prefix("NextToken").string(token);
    }
    writer.finish();
    let mut request = HttpRequest::new(SdkBody::from(body));
    request.set_method("POST")?;
    request
        .headers_mut()
        .insert("content-type", "application/x-www-form-urlencoded");
    Ok(request)
}

fn read(response: &HttpResponse) -> Result<Page, OrchestratorError<ErrorMetadata>> {
    let body = response.body().bytes().unwrap_or_default();
    if response.status().is_success() {
        page(body).map_err(|error| OrchestratorError::response(error.into()))
    } else {
        let unread = format!("HTTP status {}", response.status().as_u16());
        Err(OrchestratorError::operation(refusal(body, unread)))
    }
}

fn page(body: &[u8]) -> Result<Page, XmlDecodeError> {
    let mut document = Document::try_from(body)?;
    let mut answer = document.root_element()?;
    // The reader of XML takes the end of what there is for the end of every element.
    if !answer.start_el().matches("DescribeInstancesResponse")
        || !body
            .trim_ascii_end()
            .ends_with(b"</DescribeInstancesResponse>")
    {
        return Err(XmlDecodeError::custom("no whole answer of EC2"));
    }
    let mut page = Page::default();
    let mut reserved = false;
    while let Some(mut part) = answer.next_tag() {
        match part.start_el().local() {
            "reservationSet" => {
                reserved = true;
                while let Some(mut reservation) = part.next_tag() {
                    read_reservation(&mut reservation, &mut page.instances)?;
                }
            }
            "nextToken" => page.next = Some(try_data(&mut part)?.into_owned()),
            _ => {}
        }
    }
    if reserved {
        Ok(page)
    } else {
        Err(XmlDecodeError::custom("the answer holds no reservations"))
    }
}

fn read_reservation(
    reservation: &mut ScopedDecoder<'_, '_>,
    instances: &mut Vec<(InstanceId, Instance)>,
) -> Result<(), XmlDecodeError> {
    while let Some(mut part) = reservation.next_tag() {
        if part.start_el().matches("instancesSet") {
            while let Some(mut instance) = part.next_tag() {
                instances.push(read_instance(&mut instance)?);
            }
        }
    }
    Ok(())
}

fn read_instance(
    instance: &mut ScopedDecoder<'_, '_>,
) -> Result<(InstanceId, Instance), XmlDecodeError> {
    let (mut id, mut state, mut tags) = (None, None, BTreeMap::new());
    while let Some(mut part) = instance.next_tag() {
        match part.start_el().local() {
            "instanceId" => id = InstanceId::read(&try_data(&mut part)?),
            "instanceState" => {
                while let Some(mut part) = part.next_tag() {
                    if part.start_el().matches("name") {
                        state = Some(State::read(&try_data(&mut part)?));
                    }
                }
            }
            "tagSet" => {
                while let Some(mut tag) = part.next_tag() {
                    tags.extend([read_tag(&mut tag)?]);
                }
            }
            _ => {}
        }
    }
    match (id, state) {
        (Some(id), Some(state)) => Ok((id, Instance { state, tags })),
        _ => Err(XmlDecodeError::custom("an instance without id or state")),
    }
}

fn read_tag(tag: &mut ScopedDecoder<'_, '_>) -> Result<(String, String), XmlDecodeError> {
    let (mut key, mut value) = (None, String::new());
    while let Some(mut part) = tag.next_tag() {
        match part.start_el().local() {
            "key" => key = Some(try_data(&mut part)?.into_owned()),
            "value" => value = try_data(&mut part)?.into_owned(),
            _ => {}
        }
    }
    key.map(|key| (key, value))
        .ok_or_else(|| XmlDecodeError::custom("a tag without a key"))
}

/// `<Response><Errors><Error><Code>…</Code><Message>…</Message></Error></Errors>…`; `unread` stands for a message
/// that cannot be read, as of something in between that is not EC2.
fn refusal(body: &[u8], unread: String) -> ErrorMetadata {
    let told = || {
        let mut told = ErrorMetadata::builder();
        let mut document = Document::try_from(body)?;
        let mut answer = document.root_element()?;
        while let Some(mut errors) = answer.next_tag() {
            while let Some(mut error) = errors.next_tag() {
                while let Some(mut part) = error.next_tag() {
                    match part.start_el().local() {
                        "Code" => told = told.code(try_data(&mut part)?),
                        "Message" => told = told.message(try_data(&mut part)?),
                        _ => {}
                    }
                }
            }
        }
        Ok::<_, XmlDecodeError>(told.build())
    };
    told()
        .ok()
        .filter(|told| told.code().is_some())
        .unwrap_or_else(|| ErrorMetadata::builder().message(unread).build())
}

#[cfg(test)]
mod tests {
    use aws_config::SdkConfig;
    use aws_types::service_config::LoadServiceConfig;

    use super::*;

    fn endpoint_in(config: &SdkConfig, region: &str) -> String {
        endpoint(config, &Region::read(region).unwrap())
    }

    #[test]
    fn each_partition_has_hosts_of_its_own() {
        let config = SdkConfig::builder().build();
        for (region, url) in [
            ("eu-west-1", "https://ec2.eu-west-1.amazonaws.com"),
            ("us-gov-west-1", "https://ec2.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", "https://ec2.cn-north-1.amazonaws.com.cn"),
            ("us-isob-east-1", "https://ec2.us-isob-east-1.sc2s.sgov.gov"),
        ] {
            assert_eq!(endpoint_in(&config, region), url);
        }
    }

    /// What the environment says, as `aws-config` reads it.
    #[derive(Debug)]
    struct Environment(&'static str);

    impl LoadServiceConfig for Environment {
        fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
            let variable = format!("{}_{}", key.env(), key.service_id());
            (variable == self.0).then(|| "http://of-service".to_owned())
        }
    }

    #[test]
    fn the_variables_of_other_services_do_not_count() {
        let config = |variable| {
            SdkConfig::builder()
                .endpoint_url("http://of-all")
                .service_config(Environment(variable))
                .build()
        };
        for (variable, url) in [
            ("AWS_ENDPOINT_URL_EC2", "http://of-service"),
            ("AWS_ENDPOINT_URL_SSM", "http://of-all"),
        ] {
            assert_eq!(endpoint_in(&config(variable), "eu-west-1"), url);
        }
    }

    const ANSWER: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
    <requestId>fdcdcab1-ae5c-489e-9c33-4637c5dda355</requestId>
    <reservationSet>
        <item>
            <reservationId>r-1234567890abcdef0</reservationId>
            <groupSet/>
            <instancesSet>
                <item>
                    <instanceId>i-1234567890abcdef0</instanceId>
                    <instanceState><code>80</code><name>stopped</name></instanceState>
                    <stateReason><code>Client.UserInitiatedShutdown</code></stateReason>
                    <iamInstanceProfile><id>AID</id><name>other</name></iamInstanceProfile>
                </item>
                <item>
                    <instanceId>i-1234567890abcdef1</instanceId>
                    <instanceState><code>16</code><name>running</name></instanceState>
                    <tagSet>
                        <item><key>AgentRestart</key><value>yes &amp; no</value></item>
                        <item><key>Empty</key><value/></item>
                    </tagSet>
                </item>
            </instancesSet>
        </item>
    </reservationSet>
    <nextToken>a+/=</nextToken>
</DescribeInstancesResponse>
"#;

    #[test]
    fn an_answer_is_read_whole_or_not_at_all() {
        let read = page(ANSWER.as_bytes()).unwrap();
        let told: Vec<_> = read
            .instances
            .iter()
            .map(|(id, instance)| (id.as_str(), instance.state.word(), instance.tags.len()))
            .collect();
        assert_eq!(
            told,
            [
                ("i-1234567890abcdef0", "stopped", 0),
                ("i-1234567890abcdef1", "running", 2)
            ]
        );
        let tags = &read.instances[1].1.tags;
        assert_eq!(tags["AgentRestart"], "yes & no");
        assert_eq!(tags["Empty"], "");
        assert_eq!(read.next.as_deref(), Some("a+/="));
        for length in 0..ANSWER.trim_end().len() {
            assert!(page(&ANSWER.as_bytes()[..length]).is_err(), "{length}");
        }
        for (part, other) in [
            ("key>", "name>"),
            ("reservationSet", "reservations"),
            ("instanceId", "id"),
            ("instanceState", "state"),
            ("DescribeInstancesResponse", "Response"),
        ] {
            assert!(
                page(ANSWER.replace(part, other).as_bytes()).is_err(),
                "{part}"
            );
        }
    }

    #[test]
    fn a_refusal_that_is_not_of_ec2_is_told_by_its_status() {
        let told = refusal(
            b"<Response><Errors><Error><Code>AuthFailure</Code><Message>not &lt;you&gt;</Message></Error></Errors>\
              <RequestID>1</RequestID></Response>",
            String::new(),
        );
        assert_eq!(
            (told.code(), told.message()),
            (Some("AuthFailure"), Some("not <you>"))
        );
        for body in ["", "<html><body>Bad Gateway</body></html>", "{}"] {
            let told = refusal(body.as_bytes(), "HTTP status 502".to_owned());
            assert_eq!(
                (told.code(), told.message()),
                (None, Some("HTTP status 502"))
            );
        }
    }
}
