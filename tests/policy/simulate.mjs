// Asks the IAM simulator.
// Standard input: {"account": its number, "identities": [policy], "resources": [policy], "questions": [{"identity": number | null,
// "resource": number | null, "principal", "action", "on", "context": {key: value}}]}; the numbers are places in the two lists.
// Standard output: {"answers": ["Allowed" | "ImplicitlyDenied" | "ExplicitlyDenied" | "error: …"], in the order of the questions,
// "withoutResource": [those of their actions for which IAM knows no resource]}.

import { createValidatedPolicy, validateIdentityPolicy, validateResourcePolicy } from '@cloud-copilot/iam-policy'
import { isWildcardOnlyAction, runSimulation, runUnsafeSimulation } from '@cloud-copilot/iam-simulate'
import { text } from 'node:stream/consumers'

const { account, identities, resources, questions } = JSON.parse(await text(process.stdin))
// Validated once; the name is for the unchecked evaluation, which breaks without one.
const identityPolicies = identities.map((policy) => ({ name: 'role', policy: createValidatedPolicy(policy, validateIdentityPolicy) }))
const resourcePolicies = resources.map((policy) => createValidatedPolicy(policy, validateResourcePolicy, { name: 'resource' }))

// The simulator checks each request against the Service Authorization Reference, and takes two for mistakes that are none: a document that AWS owns, whose ARN
// has no account, and a key of an encryption context, whose name holds colons. These go to the same evaluation without that check.
const refusedInError = ({ on, context }) =>
  /^arn:[^:]+:ssm:[^:]*::document\//.test(on) || Object.keys(context).some((key) => key.startsWith('kms:EncryptionContext:'))

async function answer(question) {
  const { identity, resource, principal, action, on, context } = question
  const simulation = {
    // Another account's resource is asked about as if this account owned it: so it is our policy that refuses it, and not that account.
    request: { principal, action, resource: { resource: on, accountId: account }, contextVariables: context },
    identityPolicies: identity === null ? [] : [identityPolicies[identity]],
    resourcePolicy: resource === null ? undefined : resourcePolicies[resource],
    serviceControlPolicies: [],
    resourceControlPolicies: [],
  }
  if (refusedInError(question)) return runUnsafeSimulation(simulation, {})
  const result = await runSimulation(simulation, {})
  if (result.resultType === 'error') return `error: ${JSON.stringify(result.errors)}`
  if (result.resultType === 'wildcard') return `error: IAM knows resources for ${action}, so the question must name one`
  const ignored = result.result.ignoredContextKeys
  return ignored.length === 0 ? result.overallResult : `error: ${action} has no ${ignored.join(', ')}`
}

const answers = []
for (const question of questions) answers.push(await answer(question))

const withoutResource = []
for (const action of new Set(questions.map(({ action }) => action))) {
  if (await isWildcardOnlyAction(...action.split(':')).catch(() => false)) withoutResource.push(action)
}

process.stdout.write(JSON.stringify({ answers, withoutResource }))
