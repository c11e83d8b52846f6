//! What EC2 is asked, and what becomes of its answers.

use std::collections::BTreeMap;

use aws_config::SdkConfig;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use codedeploy_agent_restarter::aws::Clients;
use codedeploy_agent_restarter::ec2::{self, State};
use codedeploy_agent_restarter::ids::{InstanceId, Region};
use codedeploy_agent_restarter::problem::{CallError, Code};
use sim::{Fault, FaultKind, instance_id};

use crate::support::{REGION, Story};

fn id(number: usize) -> InstanceId {
    InstanceId::read(&instance_id(number)).expect("an id")
}

fn ids(numbers: impl IntoIterator<Item = usize>) -> Vec<InstanceId> {
    numbers.into_iter().map(id).collect()
}

async fn states_by(
    config: &SdkConfig,
    ids: &[InstanceId],
) -> Result<BTreeMap<InstanceId, State>, CallError> {
    let region = Region::read(REGION).expect("a region");
    let told = ec2::instances(&Clients::new(config).in_region(&region).ec2, ids).await?;
    Ok(told
        .into_iter()
        .map(|(id, told)| (id, told.state))
        .collect())
}

async fn states(
    story: &Story,
    ids: &[InstanceId],
) -> Result<BTreeMap<InstanceId, State>, CallError> {
    states_by(&story.world.sdk_config(REGION), ids).await
}

/// A fleet of one, with something wrong about the call.
fn faulty(fault: Fault) -> Story {
    let fault = Fault {
        operation: "DescribeInstances".to_owned(),
        ..fault
    };
    Story::of(1).given(|state| state.faults = vec![fault])
}

#[tokio::test(start_paused = true)]
async fn every_page_about_every_instance_is_read() {
    let story = Story::of(450).given(|state| state.page_shortfall = 990);
    let told = states(&story, &ids(1..=450)).await.expect("an answer");
    assert_eq!(told.len(), 450);
    assert!(told.values().all(|state| *state == State::Running));
    // 450 ids in three calls, of 45 pages each: EC2 may cut pages before it filters.
    let calls = story.world.calls();
    assert_eq!(calls.len(), 3 * 45);
    for call in calls {
        let filter = &call.params["Filter"][0];
        assert_eq!(filter["Name"], "instance-id");
        assert!(filter["Value"].as_array().expect("values").len() <= 200);
        assert_eq!(call.params["MaxResults"], "1000");
    }
}

#[tokio::test(start_paused = true)]
async fn whom_ec2_does_not_know_is_left_out() {
    let words = [
        "pending",
        "stopping",
        "stopped",
        "shutting-down",
        "terminated",
        "Napping",
    ];
    let story = Story::of(8).given(|state| {
        for (number, word) in (1..).zip(words) {
            state.host(&instance_id(number)).state = word.to_owned();
        }
        state.host(&instance_id(7)).forgotten = true;
    });
    let told = states(&story, &ids((1..=8).chain([999])))
        .await
        .expect("an answer");
    let wanted: BTreeMap<_, _> = [
        State::Pending,
        State::Stopping,
        State::Stopped,
        State::ShuttingDown,
        State::Terminated,
        State::Unknown("Napping".to_owned()),
    ]
    .into_iter()
    .enumerate()
    .map(|(place, state)| (id(place + 1), state))
    .chain([(id(8), State::Running)])
    .collect();
    assert_eq!(told, wanted);
    assert_eq!(told[&id(4)].to_string(), "shutting-down");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_about_no_instance() {
    let story = Story::of(1);
    assert_eq!(states(&story, &[]).await.expect("an answer").len(), 0);
    assert_eq!(story.count("DescribeInstances"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_denial_is_told_at_once() {
    let story = faulty(Fault {
        code: Some("UnauthorizedOperation".to_owned()),
        message: Some("You are not authorized to perform this operation.".to_owned()),
        ..Fault::default()
    });
    let error = states(&story, &ids([1])).await.expect_err("a denial");
    assert!(error.code.is_denied());
    assert_eq!(
        error.to_string(),
        "ec2:DescribeInstances (1 instances): UnauthorizedOperation: You are not authorized to perform this operation."
    );
    assert_eq!(story.count("DescribeInstances"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_passes_is_tried_again() {
    let fault = |kind, code: Option<&str>| Fault {
        kind,
        code: code.map(str::to_owned),
        times: 3,
        ..Fault::default()
    };
    for fault in [
        fault(FaultKind::Error, None),
        fault(FaultKind::Error, Some("InternalError")),
        fault(FaultKind::Error, Some("Unavailable")),
        fault(FaultKind::Refused, None),
        fault(FaultKind::Reset, None),
        fault(FaultKind::NoReply, None),
    ] {
        let story = faulty(fault.clone());
        let told = states(&story, &ids([1])).await;
        assert_eq!(
            told.expect("an answer")[&id(1)],
            State::Running,
            "{fault:?}"
        );
        let attempts: Vec<u32> = story
            .world
            .calls()
            .iter()
            .map(|call| call.attempt)
            .collect();
        assert_eq!(attempts, [1, 2, 3, 4], "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_pass_ends_after_eight_attempts() {
    let fault = |kind| Fault {
        kind,
        times: 100,
        ..Fault::default()
    };
    for (kind, code, seconds) in [
        (
            FaultKind::Error,
            Code::Aws("RequestLimitExceeded".to_owned()),
            0.0..150.0,
        ),
        (FaultKind::Refused, Code::NoConnection, 0.0..150.0),
        (FaultKind::NoReply, Code::Timeout, 80.0..230.0),
    ] {
        let story = faulty(fault(kind));
        let begun = story.world.now();
        let error = states(&story, &ids([1])).await.expect_err("no answer");
        assert_eq!(error.code, code);
        assert!(error.code.time_may_cure());
        assert_eq!(story.count("DescribeInstances"), 8);
        assert!(seconds.contains(&(story.world.now() - begun)), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_that_is_refused_is_no_end_of_the_list() {
    let story = Story::of(2).given(|state| {
        state.page_shortfall = 999;
        state.faults = vec![Fault {
            operation: "DescribeInstances".to_owned(),
            kind: FaultKind::ExpiredToken,
            ..Fault::default()
        }];
    });
    let error = states(&story, &ids([1, 2]))
        .await
        .expect_err("half an answer");
    assert_eq!(error.code, Code::Aws("InvalidNextToken".to_owned()));
}

/// Something between us and EC2 that answers everything in its own way.
#[derive(Clone, Debug)]
struct InBetween(&'static str);

impl HttpClient for InBetween {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for InBetween {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        let status = StatusCode::try_from(200).expect("a status");
        HttpConnectorFuture::ready(Ok(HttpResponse::new(status, SdkBody::from(self.0))))
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_none_is_not_an_empty_one() {
    let story = Story::of(1);
    for body in [
        "",
        "{\"Reservations\": []}",
        "<html><body>Please log in</body></html>",
        "<DescribeInstancesResponse><reservationSet><item><instancesSet>",
    ] {
        let config = story.world.sdk_config(REGION);
        let config = config.to_builder().http_client(InBetween(body)).build();
        let error = states_by(&config, &ids([1])).await.expect_err(body);
        assert_eq!(error.code, Code::UnreadableAnswer, "{body}");
    }
}
