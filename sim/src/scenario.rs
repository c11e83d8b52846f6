//! Conveniences that make and reach a state: what a test or demo says in one line.

use crate::state::{
    Action, AutoScalingGroup, Deployment, DeploymentGroup, Document, DocumentKind, Execution, Host,
    Member, Pipeline, Region, State, Target, Topic,
};

/// The application of [`State::for_pipeline`].
pub const APPLICATION: &str = "my-application";
/// The deployment group of [`State::for_pipeline`].
pub const DEPLOYMENT_GROUP: &str = "my-deployment-group";
/// The deployment of [`State::for_pipeline`].
pub const DEPLOYMENT: &str = "d-EXAMPLEE5";
/// The Auto Scaling group of [`State::for_pipeline`].
pub const AUTO_SCALING_GROUP: &str = "web";
/// The document for Linux of [`State::for_pipeline`].
pub const DOCUMENT: &str = "restart-agent";
/// Its document for Windows.
pub const WINDOWS_DOCUMENT: &str = "restart-windows-agent";
/// The topic of [`State::for_pipeline`].
pub const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:agent-restarts";
/// Seconds before the start at which [`State::for_pipeline`]'s deployment completed.
const COMPLETED: f64 = -5.0;

impl State {
    /// A world in which the success of that pipeline's execution is true: one deployment to one
    /// Auto Scaling group of online Linux hosts, completed five seconds before the start.
    #[must_use]
    pub fn for_pipeline(
        pipeline: &str,
        execution_id: &str,
        region: &str,
        instances: usize,
    ) -> Self {
        let ids: Vec<String> = (1..=instances).map(instance_id).collect();
        let held = Region {
            pipelines: vec![pipeline_of_one_deployment(pipeline, execution_id, region)],
            deployment_groups: vec![DeploymentGroup {
                application: APPLICATION.to_owned(),
                name: DEPLOYMENT_GROUP.to_owned(),
                auto_scaling_groups: vec![AUTO_SCALING_GROUP.to_owned()],
                ..DeploymentGroup::default()
            }],
            deployments: vec![Deployment {
                id: DEPLOYMENT.to_owned(),
                application: APPLICATION.to_owned(),
                deployment_group: DEPLOYMENT_GROUP.to_owned(),
                created_at: -120.0,
                completed_at: Some(COMPLETED),
                targets: ids
                    .iter()
                    .map(|id| Target {
                        id: id.clone(),
                        ..Target::default()
                    })
                    .collect(),
                ..Deployment::default()
            }],
            auto_scaling_groups: vec![AutoScalingGroup {
                name: AUTO_SCALING_GROUP.to_owned(),
                instances: ids
                    .iter()
                    .map(|id| Member {
                        id: id.clone(),
                        ..Member::default()
                    })
                    .collect(),
            }],
            hosts: ids
                .iter()
                .map(|id| Host {
                    id: id.clone(),
                    ..Host::default()
                })
                .collect(),
            documents: documents(),
            commands: Vec::new(),
        };
        Self {
            regions: [(region.to_owned(), held)].into(),
            topics: vec![Topic {
                arn: TOPIC.to_owned(),
                messages: Vec::new(),
            }],
            ..Self::default()
        }
    }

    /// The region of that name, made when it is not there.
    pub fn region(&mut self, name: &str) -> &mut Region {
        self.regions.entry(name.to_owned()).or_default()
    }

    /// The host with that id, in whichever region it is.
    ///
    /// # Panics
    /// When there is none: a test that names a wrong host is wrong itself.
    pub fn host(&mut self, id: &str) -> &mut Host {
        self.find_host(id)
            .unwrap_or_else(|| panic!("the world has no host {id}"))
    }

    /// The host with that id, if there is one.
    pub fn find_host(&mut self, id: &str) -> Option<&mut Host> {
        self.regions
            .values_mut()
            .flat_map(|region| &mut region.hosts)
            .find(|host| host.id == id)
    }

    /// The lifecycle state of the Auto Scaling member with that id, to be changed.
    ///
    /// # Panics
    /// When it is a member of no group.
    pub fn lifecycle(&mut self, id: &str) -> &mut String {
        self.regions
            .values_mut()
            .flat_map(|region| &mut region.auto_scaling_groups)
            .flat_map(|group| &mut group.instances)
            .find(|member| member.id == id)
            .map(|member| &mut member.lifecycle)
            .unwrap_or_else(|| panic!("{id} is a member of no Auto Scaling group"))
    }

    /// The deployment with that id.
    ///
    /// # Panics
    /// When there is none.
    pub fn deployment(&mut self, id: &str) -> &mut Deployment {
        self.regions
            .values_mut()
            .flat_map(|region| &mut region.deployments)
            .find(|deployment| deployment.id == id)
            .unwrap_or_else(|| panic!("the world has no deployment {id}"))
    }
}

/// The n-th instance id: `i-` and 17 hexadecimal digits, so that ids ascend with n.
#[must_use]
pub fn instance_id(n: usize) -> String {
    format!("i-{n:017x}")
}

/// The n-th machine outside EC2.
#[must_use]
pub fn managed_id(n: usize) -> String {
    format!("mi-{n:017x}")
}

/// The restarter's two documents, as its stack makes them.
#[must_use]
pub fn documents() -> Vec<Document> {
    vec![
        Document {
            name: DOCUMENT.to_owned(),
            kind: DocumentKind::RestartAgent,
        },
        Document {
            name: WINDOWS_DOCUMENT.to_owned(),
            kind: DocumentKind::RestartWindowsAgent,
        },
    ]
}

fn pipeline_of_one_deployment(pipeline: &str, execution_id: &str, region: &str) -> Pipeline {
    let action = Action {
        region: Some(region.to_owned()),
        application: Some(APPLICATION.to_owned()),
        deployment_group: Some(DEPLOYMENT_GROUP.to_owned()),
        deployment_id: Some(DEPLOYMENT.to_owned()),
        updated_at: COMPLETED,
        ..Action::default()
    };
    Pipeline {
        name: pipeline.to_owned(),
        executions: vec![Execution {
            id: execution_id.to_owned(),
            actions: vec![action],
        }],
    }
}
