//! The SDK's HTTP client that ends in the world, so that paging, serialising, retries and time-outs are the real ones.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;

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
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let world = self.world.clone();
        let request = read(&request);
        HttpConnectorFuture::new(async move {
            let latency = Duration::from_secs_f64(world.latency().max(0.0));
            tokio::time::sleep(latency).await;
            match world.exchange(&request) {
                Ok(reply) => written(reply),
                Err(lost) => Err(ConnectorError::io(lost.into())),
            }
        })
    }
}

fn read(request: &HttpRequest) -> Request {
    let headers: BTreeMap<String, String> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let body = request.body().bytes().unwrap_or_default();
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
    use super::*;
    use crate::state::State;

    #[tokio::test(start_paused = true)]
    async fn a_request_takes_the_latency_and_comes_back_as_an_answer() {
        let world = World::new(
            State::for_pipeline("p", "12345678-1234-5678-abcd-12345678abcd", "us-east-1", 2),
            1e9,
        );
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
        ] {
            request.headers_mut().insert(name, value);
        }
        let response = InProcess::new(world.clone()).call(request).await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        assert!(
            String::from_utf8_lossy(response.body().bytes().unwrap())
                .contains("i-00000000000000002")
        );
        assert!((world.calls()[0].at - 0.05).abs() < 0.01);
        assert_eq!(
            world
                .sdk_config("us-east-1")
                .region()
                .map(ToString::to_string)
                .as_deref(),
            Some("us-east-1")
        );
    }
}
