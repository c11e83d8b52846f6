//! The SDK's HTTP client that ends in the world, so that paging, serialising, retries and time-outs are the real ones.

use std::collections::BTreeMap;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http_body_util::BodyExt;

use crate::wire::{Reply, Request};
use crate::world::World;

/// The world as an HTTP client.
#[derive(Clone, Debug)]
pub(crate) struct InProcess {
    world: World,
}

impl InProcess {
    pub(crate) fn new(world: World) -> Self {
        Self { world }
    }
}

impl HttpClient for InProcess {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for InProcess {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        let world = self.world.clone();
        HttpConnectorFuture::new(async move {
            // Read to its end, as by any client: the SDK gives up on a body that nobody reads.
            let body = request.take_body().collect().await;
            let body = body.map_err(ConnectorError::io)?.to_bytes();
            let request = read(&request, &body);
            match world.converse(&request).await {
                Ok(reply) => written(reply),
                Err(unanswered) => Err(ConnectorError::io(unanswered.into())),
            }
        })
    }
}

fn read(request: &HttpRequest, body: &[u8]) -> Request {
    let headers: BTreeMap<String, String> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Request {
        method: request.method().to_owned(),
        path: http::Uri::try_from(request.uri())
            .map(|uri| uri.path().to_owned())
            .unwrap_or_default(),
        headers,
        body: String::from_utf8_lossy(body).into_owned(),
    }
}

fn written(reply: Reply) -> Result<HttpResponse, ConnectorError> {
    let mut response = http::Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(name, value);
    }
    response
        .body(SdkBody::from(reply.body))
        .map_err(|error| ConnectorError::other(error.into(), None))
        .and_then(|response| {
            HttpResponse::try_from(response)
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::state::{Fault, FaultKind, State};

    fn inventory_request() -> HttpRequest {
        let mut request = HttpRequest::new(SdkBody::from("{}"));
        request.set_method("POST").unwrap();
        request
            .set_uri("https://ssm.us-east-1.amazonaws.com/")
            .unwrap();
        for (name, value) in [
            (
                "Authorization",
                "AWS4-HMAC-SHA256 Credential=A/20010909/us-east-1/ssm/aws4_request, SignedHeaders=host",
            ),
            ("X-Amz-Target", "AmazonSSM.DescribeInstanceInformation"),
            ("Content-Type", "application/x-amz-json-1.1"),
            ("amz-sdk-request", "attempt=3; max=8"),
        ] {
            request.headers_mut().insert(name, value);
        }
        request
    }

    fn world(faults: Vec<Fault>) -> World {
        let execution = "12345678-1234-5678-abcd-12345678abcd";
        let mut state = State::for_pipeline("p", execution, "us-east-1", 2);
        state.faults = faults;
        World::new(state, 1e9)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_takes_the_latency_and_comes_back_as_an_answer() {
        let world = world(Vec::new());
        let response = InProcess::new(world.clone())
            .call(inventory_request())
            .await
            .unwrap();
        assert_eq!(response.status().as_u16(), 200);
        assert!(
            String::from_utf8_lossy(response.body().bytes().unwrap())
                .contains("i-00000000000000002")
        );
        let calls = world.calls();
        assert!((calls[0].at - 0.05).abs() < 0.01);
        assert_eq!((calls[0].access_key.as_str(), calls[0].attempt), ("A", 3));
        assert_eq!(
            world
                .sdk_config("us-east-1")
                .region()
                .map(ToString::to_string)
                .as_deref(),
            Some("us-east-1")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_of_the_connection_is_seen_by_the_client_and_told_by_the_world() {
        let kinds = [
            (FaultKind::Refused, 0, "ConnectionRefused"),
            (FaultKind::Reset, 0, "ConnectionReset"),
            (FaultKind::LostReply, 200, "ReplyLost"),
            (FaultKind::NoReply, 0, "NoReply"),
            (FaultKind::NoReplyAfter, 200, "NoReply"),
        ];
        for (kind, status, error) in kinds {
            let fault = Fault {
                operation: "DescribeInstanceInformation".to_owned(),
                kind,
                ..Fault::default()
            };
            let world = world(vec![fault]);
            let call = InProcess::new(world.clone()).call(inventory_request());
            let answer = timeout(Duration::from_secs(60), call).await;
            let hangs = matches!(kind, FaultKind::NoReply | FaultKind::NoReplyAfter);
            assert_eq!(answer.is_err(), hangs, "{kind:?}");
            assert!(!answer.is_ok_and(|answer| answer.is_ok()), "{kind:?}");
            let call = &world.calls()[0];
            assert_eq!((call.status, call.error.as_deref()), (status, Some(error)));
            assert_eq!(call.fault.as_ref().map(Fault::kind), Some(kind));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reply_comes_later_and_complete() {
        let world = world(vec![Fault {
            operation: "DescribeInstanceInformation".to_owned(),
            kind: FaultKind::Slow,
            seconds: 7.0,
            ..Fault::default()
        }]);
        let began = world.now();
        let response = InProcess::new(world.clone())
            .call(inventory_request())
            .await
            .unwrap();
        assert_eq!(response.status().as_u16(), 200);
        assert!((world.now() - began - 7.05).abs() < 0.01);
        assert!((world.calls()[0].at - 0.05).abs() < 0.01);
    }
}
