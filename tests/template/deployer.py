"""The policy for whoever deploys (docs/deployer-policy.json), against what CloudFormation says that it calls for each type of the stack's resources."""

import json
import re

from cfnlint.schema import PROVIDER_SCHEMA_MANAGER

import stacks

PATH = "docs/deployer-policy.json"
# Characters of a managed policy, blanks apart (IAM, quotas).
MAX_POLICY = 6144
# What a deployment calls besides: CloudFormation, and the bucket for template and code.
DEPLOYING = r"cloudformation:\w+|s3:(GetObject|ListBucket|PutObject)"
# What CloudFormation calls only for properties that this stack's resources have not.
FOR_OTHERS = (
    r"(ec2|elasticfilesystem|s3files|firehose|s3):.*|"
    r"iam:(Attach|Detach)RolePolicy|"
    r"kms:(CreateGrant|Decrypt|DisableKey|EnableKey|Encrypt|GenerateDataKey)|"
    r"lambda:(Associate|Pass|Publish|GetCodeSigningConfig|GetLayerVersion|(Put|Delete)Function(CodeSigning|Concurrency|Recursion|Scaling)|PutRuntime).*|"
    r"logs:(Create|Put|Delete)(BearerToken|DataProtection|Index|LogDelivery|LogGroupDeletion|Resource).*|logs:DescribeResourcePolicies|"
    r"sns:PutDataProtectionPolicy"
)


def check(finder, root, source):
    """Nothing is missing from it, nothing stands in it that no deployment calls, and IAM takes it."""
    policy = json.loads((root / PATH).read_text())
    size = len(re.sub(r"\s", "", json.dumps(policy)))
    finder.expect(size <= MAX_POLICY, f"{PATH} has {size} characters, IAM takes {MAX_POLICY}")
    allowed = set()
    for statement in policy["Statement"]:
        actions = statement["Action"]
        allowed |= set([actions] if isinstance(actions, str) else actions)
    needed = set()
    for kind in {resource["Type"] for resource in source["Resources"].values()}:
        handlers = PROVIDER_SCHEMA_MANAGER.get_resource_schema(stacks.REGION, kind).schema["handlers"]
        needed |= {action for name in handlers if name != "list" for action in handlers[name]["permissions"]}
    needed = {action for action in needed if not re.fullmatch(FOR_OTHERS, action)}
    finder.expect(needed <= allowed, f"{PATH} lacks {sorted(needed - allowed)}, which CloudFormation calls")
    needless = sorted(action for action in allowed - needed if not re.fullmatch(DEPLOYING, action))
    finder.expect(not needless, f"{PATH} allows {needless}, which no deployment calls")
