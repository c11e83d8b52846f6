//! The wire protocols: JSON 1.1 (CodePipeline, CodeDeploy, SSM), query XML (Auto Scaling, SNS), and EC2's own dialect
//! of the latter.
//!
//! All are read into one shape, a JSON object of parameters, and written from one shape, a JSON
//! object of results, so that a service need not know which of them it speaks.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::service::Output;

/// An HTTP request, as either seam receives it. Header names are lower case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
    /// Seconds until it arrives, beyond what every call takes.
    pub(crate) delay: f64,
}

/// An error that a service answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) status: u16,
}

impl Failure {
    /// An error with the status that AWS gives to this code.
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            status: usual_status(code),
        }
    }
}

fn usual_status(code: &str) -> u16 {
    match code {
        "InternalServerError" | "InternalFailure" | "InternalError" | "ResourceContention" => 500,
        "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "Unavailable"
        | "RequestLimitExceeded" => 503,
        "AccessDenied"
        | "UnauthorizedOperation"
        | "AuthorizationError"
        | "KMSOptInRequired"
        | "InvalidSecurity"
        | "MissingAuthenticationToken" => 403,
        "NotFound" => 404,
        _ => 400,
    }
}

/// The services there are, each with its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    CodePipeline,
    CodeDeploy,
    Ssm,
    AutoScaling,
    Sns,
    Ec2,
}

impl Service {
    /// By the service's name in a credential scope.
    fn named(name: &str) -> Option<Self> {
        match name {
            "codepipeline" => Some(Self::CodePipeline),
            "codedeploy" => Some(Self::CodeDeploy),
            "ssm" => Some(Self::Ssm),
            "autoscaling" => Some(Self::AutoScaling),
            "sns" => Some(Self::Sns),
            "ec2" => Some(Self::Ec2),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CodePipeline => "codepipeline",
            Self::CodeDeploy => "codedeploy",
            Self::Ssm => "ssm",
            Self::AutoScaling => "autoscaling",
            Self::Sns => "sns",
            Self::Ec2 => "ec2",
        }
    }

    pub(crate) fn protocol(self) -> Protocol {
        match self {
            Self::CodePipeline => Protocol::Json {
                target: "CodePipeline_20150709",
            },
            Self::CodeDeploy => Protocol::Json {
                target: "CodeDeploy_20141006",
            },
            Self::Ssm => Protocol::Json {
                target: "AmazonSSM",
            },
            Self::AutoScaling => Protocol::Query {
                version: "2011-01-01",
                namespace: "http://autoscaling.amazonaws.com/doc/2011-01-01/",
            },
            Self::Sns => Protocol::Query {
                version: "2010-03-31",
                namespace: "http://sns.amazonaws.com/doc/2010-03-31/",
            },
            Self::Ec2 => Protocol::Ec2Query {
                version: "2016-11-15",
                namespace: "http://ec2.amazonaws.com/doc/2016-11-15/",
            },
        }
    }
}

/// How a service speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Protocol {
    Json {
        target: &'static str,
    },
    Query {
        version: &'static str,
        namespace: &'static str,
    },
    /// Lists are flat in requests (`Filter.1.Value.2`), answers have no wrapper, and errors a form of their own.
    Ec2Query {
        version: &'static str,
        namespace: &'static str,
    },
}

/// To whom a request goes: the credential scope says it, as it does for AWS's own front door.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Address {
    pub(crate) service: Service,
    pub(crate) region: String,
    pub(crate) access_key: String,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) operation: String,
    pub(crate) params: Map<String, Value>,
}

/// Reads the credential scope `AKID/date/region/service/aws4_request`.
pub(crate) fn address(request: &Request) -> Result<Address, Failure> {
    let Some(authorization) = request.headers.get("authorization") else {
        return Err(Failure::new(
            "MissingAuthenticationToken",
            "Missing Authentication Token",
        ));
    };
    let scope = authorization
        .split("Credential=")
        .nth(1)
        .map(|rest| rest.split([',', ' ']).next().unwrap_or_default())
        .unwrap_or_default();
    let parts: Vec<&str> = scope.split('/').collect();
    let [access_key, .., region, service, "aws4_request"] = parts.as_slice() else {
        return Err(Failure::new(
            "IncompleteSignature",
            "Authorization header requires 'Credential' parameter with a scope of date, region, service and aws4_request.",
        ));
    };
    match Service::named(service) {
        Some(service) => Ok(Address {
            service,
            region: (*region).to_owned(),
            access_key: (*access_key).to_owned(),
        }),
        None => Err(Failure::new(
            "UnknownOperationException",
            format!("the simulation has no service {service}"),
        )),
    }
}

/// Reads the operation and its parameters. The operation comes even with an error, as far as it can be read.
pub(crate) fn asked(service: Service, request: &Request) -> (String, Result<Asked, Failure>) {
    match service.protocol() {
        Protocol::Json { target } => asked_in_json(target, request),
        Protocol::Query { version, .. } => asked_in_query(version, folded, request),
        Protocol::Ec2Query { version, .. } => asked_in_query(version, folded_flat, request),
    }
}

fn asked_in_json(target: &str, request: &Request) -> (String, Result<Asked, Failure>) {
    let header = request
        .headers
        .get("x-amz-target")
        .map(String::as_str)
        .unwrap_or_default();
    let operation = header
        .strip_prefix(target)
        .and_then(|rest| rest.strip_prefix('.'))
        .unwrap_or_default();
    if request.method != "POST" || operation.is_empty() {
        return (
            operation.to_owned(),
            Err(Failure::new("UnknownOperationException", "")),
        );
    }
    let type_is_json = request
        .headers
        .get("content-type")
        .is_some_and(|value| value.starts_with("application/x-amz-json-1.1"));
    let asked = match serde_json::from_str(&request.body) {
        Ok(Value::Object(params)) if type_is_json => Ok(Asked {
            operation: operation.to_owned(),
            params,
        }),
        _ => Err(Failure::new(
            "SerializationException",
            "Start of structure or map found where not expected.",
        )),
    };
    (operation.to_owned(), asked)
}

fn asked_in_query(
    version: &str,
    fold: fn(Value) -> Value,
    request: &Request,
) -> (String, Result<Asked, Failure>) {
    let Some(mut fields) = form(&request.body) else {
        return (
            String::new(),
            Err(Failure::new(
                "MalformedQueryString",
                "The query string contains a syntax error.",
            )),
        );
    };
    let Some(operation) = fields.remove("Action") else {
        return (
            String::new(),
            Err(Failure::new(
                "MissingAction",
                "The request is missing an action.",
            )),
        );
    };
    let told = fields.remove("Version").unwrap_or_default();
    if request.method != "POST" || told != version {
        let failure = Failure::new(
            "InvalidAction",
            format!("Could not find operation {operation} for version {told}"),
        );
        return (operation, Err(failure));
    }
    let asked = Ok(Asked {
        operation: operation.clone(),
        params: tree(&fields, fold),
    });
    (operation, asked)
}

/// The fields of a form-encoded body; `None` when it is none.
fn form(body: &str) -> Option<BTreeMap<String, String>> {
    body.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((percent_decoded(key)?, percent_decoded(value)?))
        })
        .collect()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// `A.B=x` becomes `{"A": {"B": "x"}}`, of which `fold` makes lists and maps.
fn tree(fields: &BTreeMap<String, String>, fold: fn(Value) -> Value) -> Map<String, Value> {
    let mut root = Map::new();
    for (key, value) in fields {
        let mut node = &mut root;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                node.insert(part.to_owned(), Value::String(value.clone()));
                break;
            }
            let next = node.entry(part.to_owned()).or_insert_with(|| json!({}));
            if !next.is_object() {
                *next = json!({});
            }
            let Value::Object(deeper) = next else { break };
            node = deeper;
        }
    }
    root.into_iter()
        .map(|(key, value)| (key, fold(value)))
        .collect()
}

/// EC2's form: `A.1=x` becomes `{"A": ["x"]}`.
fn folded_flat(value: Value) -> Value {
    let Value::Object(mut fields) = value else {
        return value;
    };
    if fields.keys().all(|key| key.parse::<u64>().is_ok()) {
        let items = in_number_order(&mut fields).into_iter();
        return Value::Array(items.map(folded_flat).collect());
    }
    let fields = fields.into_iter();
    Value::Object(
        fields
            .map(|(key, value)| (key, folded_flat(value)))
            .collect(),
    )
}

/// `A.member.1=x` becomes `{"A": ["x"]}` and `A.entry.1.Name=k` with `A.entry.1.Value.B=x` becomes
/// `{"A": {"k": {"B": "x"}}}`.
fn folded(value: Value) -> Value {
    let Value::Object(mut fields) = value else {
        return value;
    };
    if fields.len() == 1
        && let Some(Value::Object(members)) = fields.get_mut("member")
    {
        return Value::Array(in_number_order(members).into_iter().map(folded).collect());
    }
    if fields.len() == 1
        && let Some(Value::Object(entries)) = fields.get_mut("entry")
    {
        return Value::Object(
            in_number_order(entries)
                .into_iter()
                .filter_map(named_entry)
                .collect(),
        );
    }
    Value::Object(
        fields
            .into_iter()
            .map(|(key, value)| (key, folded(value)))
            .collect(),
    )
}

fn in_number_order(members: &mut Map<String, Value>) -> Vec<Value> {
    let mut numbered: Vec<(u64, Value)> = std::mem::take(members)
        .into_iter()
        .filter_map(|(number, value)| Some((number.parse().ok()?, value)))
        .collect();
    numbered.sort_by_key(|(number, _)| *number);
    numbered.into_iter().map(|(_, value)| value).collect()
}

fn named_entry(entry: Value) -> Option<(String, Value)> {
    let Value::Object(mut entry) = entry else {
        return None;
    };
    let name = entry.remove("Name")?.as_str()?.to_owned();
    Some((name, folded(entry.remove("Value").unwrap_or(Value::Null))))
}

/// Writes what a service answered.
pub(crate) fn reply(
    service: Service,
    operation: &str,
    outcome: Result<Output, Failure>,
    request_id: &str,
) -> Reply {
    match (service.protocol(), outcome) {
        (Protocol::Json { .. }, Ok(output)) => json_reply(200, output.in_json(), request_id),
        (Protocol::Json { .. }, Err(failure)) => json_failure(&failure, request_id),
        (Protocol::Query { namespace, .. }, Ok(output)) => {
            let body = format!(
                "<{operation}Response xmlns=\"{namespace}\"><{operation}Result>{}</{operation}Result>\
                 <ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{operation}Response>",
                xml_fields(&output.members(), &QUERY)
            );
            xml_reply(200, body, request_id)
        }
        (Protocol::Ec2Query { namespace, .. }, Ok(output)) => {
            let body = format!(
                "{XML_HEAD}\n<{operation}Response xmlns=\"{namespace}\">\n<requestId>{request_id}</requestId>{}\n</{operation}Response>",
                xml_fields(&output.members(), &EC2)
            );
            xml_reply(200, body, request_id)
        }
        (Protocol::Ec2Query { .. }, Err(failure)) => ec2_failure(&failure, request_id),
        (Protocol::Query { namespace, .. }, Err(failure)) => {
            query_failure(&failure, namespace, request_id)
        }
    }
}

/// Writes an error for a request whose service cannot be told.
pub(crate) fn reply_to_nobody(failure: &Failure, request_id: &str) -> Reply {
    json_failure(failure, request_id)
}

fn json_failure(failure: &Failure, request_id: &str) -> Reply {
    let body = json!({ "__type": failure.code, message_member(&failure.code): failure.message });
    let mut reply = json_reply(failure.status, body.to_string(), request_id);
    reply
        .headers
        .insert("x-amzn-errortype".to_owned(), failure.code.clone());
    reply
}

/// SSM's models spell the member with a capital; the other services have the protocol's own `message`.
fn message_member(code: &str) -> &'static str {
    match code {
        "InternalServerError"
        | "InvalidInstanceId"
        | "InvalidNextToken"
        | "InvalidDocument"
        | "InvalidDocumentVersion"
        | "InvalidParameters"
        | "UnsupportedPlatformType"
        | "MaxDocumentSizeExceeded"
        | "InvalidRole"
        | "InvalidNotificationConfig" => "Message",
        _ => "message",
    }
}

fn json_reply(status: u16, body: String, request_id: &str) -> Reply {
    let headers = [
        (
            "content-type".to_owned(),
            "application/x-amz-json-1.1".to_owned(),
        ),
        ("x-amzn-requestid".to_owned(), request_id.to_owned()),
    ];
    Reply {
        status,
        headers: headers.into(),
        body,
        delay: 0.0,
    }
}

fn query_failure(failure: &Failure, namespace: &str, request_id: &str) -> Reply {
    // The model of Auto Scaling blames the sender for these two, whatever their status is.
    let blamed = matches!(
        failure.code.as_str(),
        "ResourceContention" | "ServiceLinkedRoleFailure"
    );
    let side = if failure.status < 500 || blamed {
        "Sender"
    } else {
        "Receiver"
    };
    let body = format!(
        "<ErrorResponse xmlns=\"{namespace}\"><Error><Type>{side}</Type><Code>{}</Code><Message>{}</Message></Error>\
         <RequestId>{request_id}</RequestId></ErrorResponse>",
        escaped(&failure.code),
        escaped(&failure.message)
    );
    xml_reply(failure.status, body, request_id)
}

fn ec2_failure(failure: &Failure, request_id: &str) -> Reply {
    let body = format!(
        "{XML_HEAD}\n<Response><Errors><Error><Code>{}</Code><Message>{}</Message></Error></Errors>\
         <RequestID>{request_id}</RequestID></Response>",
        escaped(&failure.code),
        escaped(&failure.message)
    );
    xml_reply(failure.status, body, request_id)
}

fn xml_reply(status: u16, body: String, request_id: &str) -> Reply {
    let headers = [
        ("content-type".to_owned(), "text/xml".to_owned()),
        ("x-amzn-requestid".to_owned(), request_id.to_owned()),
    ];
    Reply {
        status,
        headers: headers.into(),
        body,
        delay: 0.0,
    }
}

/// How a protocol writes XML.
struct Dialect {
    /// The element of a list's item.
    item: &'static str,
    /// What stands before each element: EC2 breaks lines.
    before: &'static str,
}

const QUERY: Dialect = Dialect {
    item: "member",
    before: "",
};
const EC2: Dialect = Dialect {
    item: "item",
    before: "\n",
};
const XML_HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>";

fn xml(value: &Value, dialect: &Dialect) -> String {
    let Dialect { item: word, before } = dialect;
    match value {
        Value::Null => String::new(),
        Value::String(text) => escaped(text),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) => items.iter().fold(String::new(), |mut text, item| {
            let _ = write!(text, "{before}<{word}>{}</{word}>", xml(item, dialect));
            text
        }),
        Value::Object(fields) => xml_fields(fields, dialect),
    }
}

fn xml_fields(fields: &Map<String, Value>, dialect: &Dialect) -> String {
    let before = dialect.before;
    let told = fields.iter().filter(|(_, value)| !value.is_null());
    told.fold(String::new(), |mut text, (key, value)| {
        let _ = write!(text, "{before}<{key}>{}</{key}>", xml(value, dialect));
        text
    })
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\r', "&#xD;")
}

/// Epoch seconds as the query protocol writes them, `2026-11-21T23:04:05.678Z`.
pub(crate) fn iso_8601(epoch: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "milliseconds of any year that matters fit"
    )]
    let millis = (epoch * 1000.0).round() as i64;
    let (days, of_day) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
        of_day % 1000
    )
}

/// Year, month and day of a day counted from 1970-01-01, by the usual shift of the year's start to March.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// A number that depends on a text alone (FNV-1a): ids, tokens and shuffles must repeat.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A text in the shape of a UUID (36 characters) that depends on a text alone.
pub(crate) fn uuid(seed: &str) -> String {
    let digits = format!(
        "{:016x}{:016x}",
        hash(seed),
        hash(&format!("{seed}/second half"))
    );
    format!(
        "{}-{}-4{}-a{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[13..16],
        &digits[17..20],
        &digits[20..32]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(body: &str) -> Map<String, Value> {
        let request = Request {
            method: "POST".to_owned(),
            body: body.to_owned(),
            ..Request::default()
        };
        asked(Service::Sns, &request).1.unwrap().params
    }

    #[test]
    fn lists_and_maps_of_the_query_protocol_are_folded_in_order() {
        let body = "Action=Publish&Version=2010-03-31&L.member.10=j&L.member.2=b%20%C3%BC&L.member.1=a+c\
                    &M.entry.1.Name=k&M.entry.1.Value.DataType=String&M.entry.1.Value.StringValue=v";
        assert_eq!(
            Value::Object(query(body)),
            json!({ "L": ["a c", "b ü", "j"], "M": { "k": { "DataType": "String", "StringValue": "v" } } })
        );
    }

    #[test]
    fn the_credential_scope_says_who_is_asked() {
        let mut request = Request::default();
        assert_eq!(
            address(&request).unwrap_err().code,
            "MissingAuthenticationToken"
        );
        let value = "AWS4-HMAC-SHA256 Credential=AK/20261121/eu-west-1/ssm/aws4_request, SignedHeaders=host";
        request
            .headers
            .insert("authorization".to_owned(), value.to_owned());
        assert_eq!(
            address(&request).unwrap(),
            Address {
                service: Service::Ssm,
                region: "eu-west-1".to_owned(),
                access_key: "AK".to_owned(),
            }
        );
    }

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        assert_eq!(iso_8601(951_782_400.0), "2000-02-29T00:00:00.000Z");
        assert_eq!(iso_8601(1_764_025_200.512), "2025-11-24T23:00:00.512Z");
    }
}
