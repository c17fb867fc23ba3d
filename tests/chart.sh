#!/bin/sh
# Renders chart/slipway with many values and checks the manifests, without a cluster.
#
#   HELM              the helm binary (default: helm)
#   STRICT_MANIFESTS  the binary of tests/stack/tools/helm/strict-manifests; if unset, the manifests' fields are not checked
#   PROMTOOL          the binary promtool of Prometheus; if unset, the alerts are not checked
set -eu

cd "$(dirname "$0")/.."
helm=${HELM:-helm}
chart=chart/slipway
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
# Do not use the user's settings or cluster.
HELM_CONFIG_HOME=$dir HELM_CACHE_HOME=$dir HELM_DATA_HOME=$dir KUBECONFIG=$dir/none
export HELM_CONFIG_HOME HELM_CACHE_HOME HELM_DATA_HOME KUBECONFIG
failed=0
case=
release=slipway

fail() {
    echo "FAILED: $case: $*" >&2
    failed=1
}

# begin NAME ARGUMENTS…: renders into $dir/out
begin() {
    case=$1
    shift
    if ! "$helm" template "$release" "$chart" --namespace openfaas --kube-version 1.33.0 "$@" >"$dir/out" 2>"$dir/err"; then
        fail "helm template failed: $(cat "$dir/err")"
        : >"$dir/out"
    elif [ -n "${STRICT_MANIFESTS-}" ]; then
        # The kinds of operators are not among the types of the Kubernetes API.
        awk 'BEGIN { RS = ORS = "---\n" } !/apiVersion: (cert-manager[.]io|monitoring[.]coreos[.]com)/' "$dir/out" >"$dir/kubernetes"
        "$STRICT_MANIFESTS" <"$dir/kubernetes" >"$dir/strict" 2>&1 || fail "$(cat "$dir/strict")"
    fi
}

# part FILE: keeps only what the template FILE rendered, in $dir/out
part() {
    awk -v file="/$1\n" 'BEGIN { RS = ORS = "---\n" } index($0, file)' "$dir/out" >"$dir/part"
    mv "$dir/part" "$dir/out"
}

# rejects NAME TEXT ARGUMENTS…: rendering must fail with TEXT in the message
rejects() {
    case=$1
    text=$2
    shift 2
    if "$helm" template "$release" "$chart" --namespace openfaas --kube-version 1.33.0 "$@" >"$dir/out" 2>"$dir/err"; then
        fail "helm template succeeded, and has to fail"
    elif ! grep -q -e "$text" "$dir/err"; then
        fail "no \"$text\" in the message: $(cat "$dir/err")"
    fi
}

# notes NAME ARGUMENTS…: renders NOTES.txt into $dir/out; helm itself shows it only with a cluster
notes() {
    case=$1
    shift
    rm -rf "$dir/notes"
    cp -r "$chart" "$dir/notes"
    {
        echo '{{- define "notes" -}}'
        cat "$chart/templates/NOTES.txt"
        echo '{{- end -}}'
    } >"$dir/notes/templates/_notes.tpl"
    echo 'notes: {{ include "notes" . | toJson }}' >"$dir/notes/templates/notes.yaml"
    if ! "$helm" template "$release" "$dir/notes" --kube-version 1.33.0 --show-only templates/notes.yaml "$@" >"$dir/raw" 2>"$dir/err"; then
        fail "helm template failed: $(cat "$dir/err")"
    fi
    sed 's/\\n/\
/g' "$dir/raw" >"$dir/out"
}

has() { grep -q -F -e "$1" "$dir/out" || fail "no \"$1\" in the manifests"; }
has_not() { ! grep -q -F -e "$1" "$dir/out" || fail "\"$1\" in the manifests"; }
count() {
    found=$(grep -c -e "$2" "$dir/out" || true)
    [ "$found" = "$1" ] || fail "$found lines with \"$2\", expected $1"
}

case=lint
"$helm" lint --strict "$chart" >"$dir/out" 2>&1 || fail "$(cat "$dir/out")"

case="the README names every value"
for name in $(sed -n 's/^ *\([a-zA-Z]*\):.*/\1/p' "$chart/values.yaml" | sort -u); do
    case $name in cpu) continue ;; esac # of Kubernetes
    grep -q -w -e "$name" "$chart/README.md" || fail "it does not name $name"
done

cat >"$dir/tenants.yaml" <<'EOF'
policy:
  tenants:
    acme:
      keys: [acme-payload]
      deployKeys: [acme-deploy]
      push: [registry.example/acme/]
      registryConfig: acme-registry
      pullConfig: acme-pull
secrets:
  tenants:
    acme-payload: { name: acme-payload, key: acme-payload }
    acme-deploy: { name: acme-deploy, key: acme-deploy }
    acme-registry: { name: registry-of-acme, key: config.json }
    acme-pull: { name: acme-pull, key: acme-pull }
EOF

begin "defaults"
count 2 '^kind: Deployment$'
count 1 '^kind: StatefulSet$'
count 3 '^kind: Service$'
count 3 '^kind: NetworkPolicy$'
# The label by which the provider finds functions: on Deployment, its selector, pods, Service, policies and budget.
count 7 'faas_function: builder-fn$'
count 5 'faas_function: deployer-fn$'
has 'image: docker.io/slipway/builder-fn:0.1.0'
has 'image: docker.io/slipway/deployer-fn:0.1.0'
has 'value: "tcp://slipway-buildkit.openfaas:1234"'
# No pod has a service account's token, except the job that renews certificates, and none runs as root.
count 5 'automountServiceAccountToken: false'
count 1 'automountServiceAccountToken: true'
count 3 'runAsNonRoot: true'
count 1 'hostUsers: false'
count 3 'readOnlyRootFilesystem: true'
count 3 'allowPrivilegeEscalation: false'
has_not 'privileged: true'
has_not 'securityContext: {}'
has_not 'hostPath'
has_not 'hostNetwork'
# The chart creates secrets with the certificates for BuildKit, and no others.
count 3 '^kind: Secret$'
count 3 '^type: kubernetes.io/tls$'
count 1 'path: payload-secret$'
count 2 'path: deploy-secret$'
count 1 'path: registry-config$'
count 1 'path: basic-auth-user$'
count 1 'path: basic-auth-password$'
# The gateway's autoscaler adds no second deployer.
count 1 'com.openfaas.scale.min: "1"$'
count 1 'com.openfaas.scale.max: "1"$'
# A signature may be as old as it wants.
count 1 '- name: max_age$'
has 'value: "0s"'
# BuildKit keeps records of past builds.
count 1 '^    \[history\]$'
has 'maxAge = "48h"'
has 'maxEntries = 10000'
# It keeps the whole output of a step.
for limit in SIZE SPEED; do
	grep -A1 -F "name: BUILDKIT_STEP_LOG_MAX_$limit" "$dir/out" | grep -q -F 'value: "-1"' || fail "step logs are clipped ($limit)"
done
# The builder has no credentials of the gateway.
sed -n '/^# Source: .*builder.yaml/,/^---/p' "$dir/out" | grep -A4 'secret:$' >"$dir/builder"
grep -q payload-secret "$dir/builder" || fail "the builder has no key"
! grep -q basic-auth "$dir/builder" || fail "the builder has the gateway's credentials"
# Every variable that the chart sets is read by a function. The C library reads MALLOC_ARENA_MAX.
count 1 '- name: MALLOC_ARENA_MAX$'
sed '/kind: StatefulSet$/,$d' "$dir/out" | sed -n '/env:$/,/livenessProbe:$/s/^ *- name: //p' | grep -v '^MALLOC_ARENA_MAX$' | sort -u >"$dir/env"
[ -s "$dir/env" ] || fail "no environment variables in the manifests"
while read -r name; do
    grep -rqF "\"$name\"" builder-fn/src deployer-fn/src function-host/src || fail "no function reads the variable $name"
done <"$dir/env"

begin "the deployer reads Kubernetes"
part deployer.yaml
has 'serviceAccountName: deployer-fn'
has 'mountPath: /var/run/secrets/kubernetes.io/serviceaccount'
has 'resources: [pods/log]'
count 2 'verbs: \[get\]'
count 2 'verbs: \[list\]'
count 4 'verbs:'
has_not 'secrets]'
begin "the deployer reads Kubernetes with another account" --set deployer.serviceAccountName=mine,networkPolicy.kubernetesApi.networks[0]=192.0.2.1/32
part deployer.yaml
has 'serviceAccountName: mine'
count 1 'kind: ServiceAccount$'
begin "the API server's network" --set networkPolicy.kubernetesApi.networks[0]=192.0.2.1/32
part networkpolicies.yaml
has 'cidr: 192.0.2.1/32'
begin "the deployer quotes no logs" --set deployer.quoteLogs=false
has_not 'pods/log'
rejects "a settling time as long as all the time there is" 'deployer.settlingTime: 5m' --set deployer.settlingTime=5m,deployer.readyTimeout=300s
begin "the deployer does not read Kubernetes" --set deployer.kubernetesReadiness=false
part deployer.yaml
has_not 'serviceAccountToken'
has_not 'kind: Role'
has_not 'serviceAccountName'

begin "before Kubernetes 1.30" --kube-version 1.29.0
has 'container.apparmor.security.beta.kubernetes.io/buildkitd: unconfined'
has_not 'appArmorProfile'

release=other
begin "another release and other namespaces" --set functionNamespace=fn,gateway.namespace=faas
has 'name: other-slipway-buildkit'
has 'value: "tcp://other-slipway-buildkit.openfaas:1234"'
count 14 'namespace: fn$'
count 2 '- name: default_namespace$'
count 2 'value: "fn"$'
has 'kubernetes.io/metadata.name: faas'
has 'kubernetes.io/metadata.name: fn'
release=slipway

begin "images by digest" --set builder.image.digest=sha256:1111111111111111111111111111111111111111111111111111111111111111
has 'image: docker.io/slipway/builder-fn@sha256:1111'
has 'image: docker.io/slipway/deployer-fn:0.1.0'

begin "an existing BuildKit" --set buildkit.enabled=false,buildkit.url=tcp://buildkit.build:1234,buildkit.plaintext=true
has 'value: "tcp://buildkit.build:1234"'
has_not 'kind: StatefulSet'
has_not 'kind: ConfigMap'
count 2 '^kind: NetworkPolicy$'

begin "grace periods are longer than the longest work" --set builder.timeout=2h,deployer.readyTimeout=10m
count 2 'terminationGracePeriodSeconds: 7260$'
count 1 'terminationGracePeriodSeconds: 690$'
# The deployer's own limit, and the builder's for it.
count 2 'value: "660s"$'
begin "grace periods of one's own" --set builder.terminationGracePeriodSeconds=3600,buildkit.terminationGracePeriodSeconds=4000,deployer.terminationGracePeriodSeconds=400
count 1 'terminationGracePeriodSeconds: 3600$'
count 1 'terminationGracePeriodSeconds: 4000$'
count 1 'terminationGracePeriodSeconds: 400$'
for part in builder buildkit; do
    rejects "a grace period of $part that ends builds" "$part.terminationGracePeriodSeconds: 1800, and more than builder.timeout (30m) is right" --set $part.terminationGracePeriodSeconds=1800
done
rejects "a grace period that ends rollouts" "deployer.terminationGracePeriodSeconds: 60, and more than deployer.timeout (360s) is right" --set deployer.terminationGracePeriodSeconds=60
rejects "a deployment without time for a rollback" "deployer.timeout: 5m, and at least deployer.readyTimeout (5m) and 25s are right" --set deployer.timeout=5m

begin "disruption budgets"
count 2 '^kind: PodDisruptionBudget$'
count 2 'maxUnavailable: 1$'
begin "no disruption budgets" --set podDisruptionBudget.enabled=false
has_not 'kind: PodDisruptionBudget'
begin "a disruption budget without a daemon" --set buildkit.enabled=false,buildkit.url=tcp://buildkit.build:1234,buildkit.plaintext=true
count 1 '^kind: PodDisruptionBudget$'

begin "more builders while many builds run" --set builder.autoscaling.enabled=true,builder.autoscaling.maxReplicas=6
part builder.yaml
count 1 'kind: HorizontalPodAutoscaler$'
count 1 'maxReplicas: 6$'
count 1 'averageValue: "4"$'
# An upgrade must not set the number of pods back.
count 0 '^  replicas: '
rejects "more builders at least than at most" "builder.autoscaling.minReplicas: 5, and at most maxReplicas (4) is right" --set builder.autoscaling.enabled=true,builder.autoscaling.minReplicas=5
begin "a fixed number of builders"
part builder.yaml
count 1 '^  replicas: 1$'
has_not 'HorizontalPodAutoscaler'

begin "no monitoring"
has_not 'monitoring.coreos.com'
has_not 'dashboard'
begin "monitoring" --set monitoring.podMonitor.enabled=true,monitoring.podMonitor.labels.release=prometheus,monitoring.rules.enabled=true,monitoring.rules.alertLabels.team=platform \
    --set monitoring.dashboard.enabled=true,monitoring.dashboard.namespace=grafana,monitoring.namespace=metrics,builder.spool.limit=5000000000,builder.spool.sizeLimit=6Gi
cp "$dir/out" "$dir/all"
part podmonitor.yaml
count 1 'release: prometheus$'
count 1 'values: \[builder-fn, deployer-fn\]$'
count 1 '- port: metrics$'
cp "$dir/all" "$dir/out"
part dashboard.yaml
count 1 'grafana_dashboard: "1"$'
count 1 'namespace: grafana$'
cp "$dir/all" "$dir/out"
part networkpolicies.yaml
# Of builder and deployer.
count 2 'kubernetes.io/metadata.name: metrics$'
cp "$dir/all" "$dir/out"
part rules.yaml
has 'slipway_spool_bytes) > 4500000000'
[ "$(grep -c -e '- alert:\|^ *alert:' "$dir/out")" = "$(grep -c 'team: platform' "$dir/out")" ] || fail "an alert without the label"
# Every metric of the alerts is one of the functions.
for metric in $(grep -o '\(slipway\|http\)_[a-z_]*' "$dir/out" | sed 's/_bucket$//' | sort -u); do
    grep -q -F -e "\`$metric\`" docs/observability.md || fail "no function has the metric $metric"
done
if [ -n "${PROMTOOL-}" ]; then
    sed -n '/^  groups:/,$s/^  //p' "$dir/out" | sed '/^---$/,$d' >"$dir/rules.yaml"
    "$PROMTOOL" check rules "$dir/rules.yaml" >"$dir/err" 2>&1 || fail "$(cat "$dir/err")"
    grep -q "SUCCESS: $(grep -c 'alert:' "$dir/rules.yaml") rules found" "$dir/err" || fail "$(cat "$dir/err")"
fi

begin "no sample"
has_not 'helm.sh/hook'
begin "a sample for helm test" --set sample.repository=registry.example/samples,secrets.gatewayCa.name=gateway-tls
part sample.yaml
count 1 'kind: Pod$'
count 2 'helm.sh/hook: test$'
count 1 'value: "registry.example/samples:slipway-sample"$'
count 1 'name: payload-secret$'
count 1 'path: gateway-ca$'
count 1 'runAsNonRoot: true$'
rejects "a sample of no tenant" "sample.secret.name: with policy.tenants" -f "$dir/tenants.yaml" --set sample.repository=registry.example/acme
begin "a sample of a tenant" -f "$dir/tenants.yaml" --set sample.repository=registry.example/acme,sample.secret.name=acme-payload,sample.secret.key=acme-payload
part sample.yaml
count 1 'name: acme-payload$'

begin "volumes that are kept"
count 1 'whenDeleted: Retain$'
count 1 'whenScaled: Retain$'
begin "volumes that are removed" --set buildkit.persistence.whenDeleted=Delete
count 1 'whenDeleted: Delete$'
begin "volumes before Kubernetes 1.27" --kube-version 1.26.0
has_not 'whenDeleted'
rejects "a Kubernetes that is too old" "kubeVersion" --kube-version 1.24.0

begin "two releases in one namespace" --set builder.name=build-staging,deployer.name=deploy-staging
count 7 'faas_function: build-staging$'
count 5 'faas_function: deploy-staging$'
has_not 'faas_function: builder-fn'
has 'value: "deploy-staging"'
# Interrupted calls are submitted to the builder's own queue.
has 'value: "build-staging"'
# No build deploys under the names of either.
count 2 'value: "build-staging,deploy-staging"$'
rejects "one name for both functions" "builder.name: fn, and another name than deployer.name" --set builder.name=fn,deployer.name=fn
rejects "a name that is no function's" "/builder/name" --set builder.name=Build_1
notes "the notes name the functions" --set builder.name=build-staging
has '/function/build-staging'

begin "images of another registry" --set 'global.imageRegistry=mirror.example:5000/hub,global.imagePullSecrets={mirror}'
count 1 'image: mirror.example:5000/hub/slipway/builder-fn:0.1.0$'
count 1 'image: mirror.example:5000/hub/slipway/deployer-fn:0.1.0$'
count 2 'image: mirror.example:5000/hub/moby/buildkit:v0.34.2$'
count 4 '- name: mirror$'
has 'mirror,payload-secret'
begin "pull secrets as objects" --set-json 'global={"imagePullSecrets":[{"name":"mirror"}],"storageClass":"of another chart"}'
count 4 '- name: mirror$'
begin "an image without a registry" --set buildkit.image.repository=moby/buildkit,global.imageRegistry=mirror.example
count 2 'image: mirror.example/moby/buildkit:v0.34.2$'
rejects "a daemon without a version" "buildkit.image: should have a tag" --set buildkit.image.tag=

begin "registries over plain HTTP" --set 'buildkit.insecureRegistries={registry.openfaas:5000}'
part config.yaml
has '[registry."registry.openfaas:5000"]'
has 'http = true'
count 1 '\[worker.oci\]'
rejects "a registry that is there twice" "must not have the table" --set 'buildkit.insecureRegistries={r.example}' --set-string 'buildkit.config=[registry."r.example"]'

cat >"$dir/pods.yaml" <<'EOF'
podLabels: { team: build }
podSecurityContext: { fsGroup: 65534, supplementalGroups: [7] }
serviceAccountName: ecr
priorityClassName: high
topologySpreadConstraints: [{ maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule }]
envFrom: [{ secretRef: { name: aws } }]
initContainers: [{ name: helper, image: helper }]
extraVolumes: [{ name: helpers, emptyDir: {} }]
extraVolumeMounts: [{ name: helpers, mountPath: /helpers }]
EOF
for name in builder deployer buildkit; do
    {
        echo "$name:"
        sed 's/^/  /' "$dir/pods.yaml"
    } >"$dir/$name.yaml"
done
for isolation in userNamespace rootless; do
    begin "everything that Kubernetes lets pods have, $isolation" -f "$dir/builder.yaml" -f "$dir/deployer.yaml" -f "$dir/buildkit.yaml" --set buildkit.isolation=$isolation
    count 3 'team: build$'
    count 3 'fsGroup: 65534$'
    count 3 'serviceAccountName: ecr$'
    count 3 'priorityClassName: high$'
    count 3 'topologyKey: zone$'
    count 3 'name: aws$'
    count 3 '- image: helper$'
    count 3 'mountPath: /helpers$'
    count 0 'fsGroup: 1000$'
    # No pod gets the account's token in the usual place.
    count 4 'automountServiceAccountToken: false'
done
count 4 'runAsNonRoot: true$'

begin "secrets of the pods that no function gets" --set-json 'builder={"envFrom":[{"secretRef":{"name":"aws-env"}},{"configMapRef":{"name":"map"}}],"extraVolumes":[{"name":"v","secret":{"secretName":"aws-file"}},{"name":"w","emptyDir":{}}]}' \
    --set-json 'deployer={"initContainers":[{"name":"i","image":"i","envFrom":[{"secretRef":{"name":"init-env"}}],"env":[{"name":"A","value":"b"},{"name":"K","valueFrom":{"secretKeyRef":{"name":"init-key","key":"k"}}}]}],"extraVolumes":[{"name":"p","projected":{"sources":[{"secret":{"name":"part"}},{"configMap":{"name":"map"}}]}}]}'
count 2 'value: "aws-env,aws-file,basic-auth,deploy-secret,init-env,init-key,part,payload-secret,'

begin "a key for build secrets" --set secrets.buildSecrets.name=build-secrets
count 1 'path: build-secrets-key$'
has 'value: "/var/openfaas/secrets/build-secrets-key"'
count 2 'value: "basic-auth,build-secrets,deploy-secret,'
begin "a token for the gateway" --set secrets.gatewayToken.name=gateway-token
count 1 'path: gateway-token$'
has_not 'path: basic-auth'
notes "the notes list the token" --set secrets.gatewayToken.name=gateway-token
has 'gateway-token (key gateway-token)'
has_not 'basic-auth'
begin "a token of OpenFaaS IAM" --set deployer.iamAudience=https://gateway.example
count 1 'path: openfaas-token$'
has 'audience: https://gateway.example'
count 1 'mountPath: /var/secrets/tokens$'
has_not 'path: basic-auth'
begin "images that are looked up" --set deployer.checkImage=true,secrets.registryPull.name=pull --set-json 'networkPolicy.allowedToDeployer=[{"ports":[{"port":5000}]}]'
count 1 'path: registry-pull-config$'
count 1 'port: 5000$'

begin "no persistence, no policies" --set buildkit.persistence.enabled=false,networkPolicy.enabled=false
has_not 'volumeClaimTemplates'
# What the node gives to the cache is limited.
has 'sizeLimit: 50Gi'
has_not 'kind: NetworkPolicy'

begin "everything set" --set-json 'builder={"env":{"log_level":"debug","max_inflight":"3"},"podAnnotations":{"a":"b"},"nodeSelector":{"disk":"ssd"},"tolerations":[{"operator":"Exists"}],"affinity":{"nodeAffinity":{}}}' \
    --set-json 'imagePullSecrets=["pull"]' --set 'secrets.registry.key=\.dockerconfigjson,buildkit.persistence.storageClass=fast' \
    --set gateway.publicUrl=https://fn.example,builder.insecureRegistry=true,builder.queueWait=20m
has 'value: "20m"'
has 'value: "debug"'
has 'value: "3"'
count 1 '- name: max_inflight$'
has 'disk: ssd'
has '- name: pull'
has 'key: .dockerconfigjson'
has 'storageClassName: fast'
has 'value: "https://fn.example"'
has 'value: "true"'

begin "a gateway behind TLS" --set gateway.url=https://gateway.openfaas:8443,secrets.gatewayCa.name=gateway-tls
count 2 'value: "https://gateway.openfaas:8443"'
count 2 'name: gateway-tls$'
count 2 'path: gateway-ca$'

notes "the notes list the required secrets"
count 5 '^  [a-z-]* (key [a-z.-]*)$'
count 1 'basic-auth (key basic-auth-user)$'
notes "the notes list the gateway's certificate" --set secrets.gatewayCa.name=gateway-tls
count 1 '^  gateway-tls (key ca.crt)$'

begin "traces" --set otel.endpoint=https://collector.observability:4318,otel.headers.name=collector,otel.env.OTEL_TRACES_SAMPLER=always_on
count 2 '- name: OTEL_EXPORTER_OTLP_ENDPOINT$'
count 2 'value: "https://collector.observability:4318"'
count 2 '- name: OTEL_TRACES_SAMPLER$'
count 2 'name: collector$'
count 2 'path: otel-headers$'
count 1 'port: 4318$'
count 1 'path: payload-secret$'
for name in $(sed -n 's/^ *- name: \(OTEL_.*\)/\1/p' "$dir/out" | sort -u); do
    grep -rqF "\"$name\"" function-host/src || fail "no function reads the variable $name"
done
begin "a separate collector for one function" --set otel.endpoint=http://collector,builder.env.OTEL_EXPORTER_OTLP_ENDPOINT=http://other
count 1 'value: "http://collector"'
count 1 'value: "http://other"'
count 1 'port: 80$'
has_not 'otel-headers'
begin "a collector in a namespace" --set otel.endpoint=https://collector,otel.namespace=observability,deployer.kubernetesReadiness=false
has 'kubernetes.io/metadata.name: observability'
has_not 'port: 443'
begin "no traces" --set otel.env.OTEL_TRACES_SAMPLER=always_on,otel.headers.name=collector
has_not 'OTEL_'
has_not 'otel-headers'

# Mutual TLS needs no values: the secrets are those that daemon and builder mount.
begin "mutual TLS"
has 'value: "slipway-buildkit.openfaas"'
has '--tlscacert=/etc/buildkit-tls/ca.crt'
has '--tlskey=/etc/buildkit-tls/tls.key'
count 2 'name: slipway-buildkit-daemon-tls$\|secretName: slipway-buildkit-daemon-tls$'
# Its own name, and three files of the builder.
count 4 'name: slipway-buildkit-client-tls$'
count 1 'path: buildkit-ca$'
count 1 'path: buildkit-cert$'
count 1 'path: buildkit-key$'
count 1 'path: payload-secret$'
has_not 'buildkit_plaintext'
# No pod mounts the authority. The job that renews may read and change the three secrets.
count 3 'slipway-buildkit-authority$'
count 0 'secretName: slipway-buildkit-authority$'
count 1 '    - slipway-buildkit-authority$'
count 1 'value: openfaas/slipway-buildkit-authority$'
count 2 'verbs: \[get, patch\]$'
count 2 'resources: \[secrets\]$'
count 2 'resourceNames:$'
# A renewed certificate restarts the daemon when no build runs, and running builds may finish.
has 'command: [sh, /etc/buildkit/alive.sh]'
has 'terminationGracePeriodSeconds: 1860'

# field NAME: prints the text of a field of the secret in $dir/out
field() { sed -n "s/^ *$1: \"*\([^\"]*\)\"*$/\1/p" "$dir/out"; }
# certificate SECRET: keeps its files in $dir/SECRET
certificate() {
    mkdir -p "$dir/$1"
    awk -v name="  name: $1\n" 'BEGIN { RS = ORS = "---\n" } /kind: Secret/ && index($0, name)' "$dir/all" >"$dir/out"
    for entry in ca.crt tls.crt tls.key; do field "$entry" | base64 -d >"$dir/$1/$entry"; done
}
cp "$dir/out" "$dir/all"
for pair in daemon:sslserver client:sslclient; do
    name=slipway-buildkit-${pair%:*}-tls
    certificate "$name"
    openssl verify -purpose "${pair#*:}" -CAfile "$dir/$name/ca.crt" "$dir/$name/tls.crt" >"$dir/err" 2>&1 || fail "$name: $(cat "$dir/err")"
    [ "$(openssl pkey -in "$dir/$name/tls.key" -pubout)" = "$(openssl x509 -in "$dir/$name/tls.crt" -noout -pubkey)" ] || fail "$name: the key is of another certificate"
done
openssl x509 -in "$dir/slipway-buildkit-daemon-tls/tls.crt" -noout -checkhost slipway-buildkit.openfaas | grep -q 'does match' || fail "the daemon's certificate has another name"
cmp -s "$dir/slipway-buildkit-daemon-tls/tls.key" "$dir/slipway-buildkit-client-tls/tls.key" && fail "daemon and builder have one key"

# An upgrade, without a cluster: a copy of the chart finds the secrets of the first rendering in a folder instead.
# stored: makes the copy, with what the cluster has after the sed program EDIT
stored() {
    rm -rf "$dir/upgrade"
    cp -r "$chart" "$dir/upgrade"
    cat >"$dir/upgrade/templates/_stored.tpl" <<'EOF'
{{- define "slipway.stored.secret" -}}{{ .root.Files.Get (printf "stored/%s.yaml" .name) }}{{- end -}}
{{- define "slipway.stored.statefulset" -}}{{ .root.Files.Get (printf "stored/%s.yaml" .name) }}{{- end -}}
EOF
    mkdir "$dir/upgrade/stored"
    for name in authority daemon-tls client-tls; do
        awk -v name="  name: slipway-buildkit-$name\n" 'BEGIN { RS = "---\n" } /kind: Secret/ && index($0, name)' "$dir/all" |
            sed -e "$1" >"$dir/upgrade/stored/slipway-buildkit-$name.yaml"
    done
    awk 'BEGIN { RS = "---\n" } /kind: StatefulSet/' "$dir/all" | sed -e "$1" >"$dir/upgrade/stored/slipway-buildkit.yaml"
}
# upgrade NAME EDIT: the second rendering, after the sed program EDIT on what the cluster has
upgrade() {
    stored "$2"
    case=$1
    "$helm" template "$release" "$dir/upgrade" --namespace openfaas --kube-version 1.33.0 >"$dir/upgraded" 2>"$dir/err" || fail "$(cat "$dir/err")"
}
# changed ENTRY…: which of the entries of secrets are new
entries() { awk 'BEGIN { RS = "---\n" } /kind: Secret/' "$1" | sed -n 's/^  \(name\|ca.crt\|tls.crt\|tls.key\): /\1 /p'; }
upgrade "an upgrade keeps the certificates" ''
[ "$(entries "$dir/all")" = "$(entries "$dir/upgraded")" ] || fail "they changed"
now=$(date +%s)
third=$((365 * 86400 / 3))
upgrade "certificates with more than a third of their time left are kept" "s/not-after: .*/not-after: \"$((now + third + 600))\"/"
[ "$(entries "$dir/all")" = "$(entries "$dir/upgraded")" ] || fail "they changed"
upgrade "certificates with less than a third of their time left are renewed" "s/not-after: .*/not-after: \"$((now + third - 600))\"/"
cp "$dir/all" "$dir/old"
for name in daemon client; do
    mkdir -p "$dir/old-$name"
    cp "$dir/slipway-buildkit-$name-tls/"* "$dir/old-$name"
done
cp "$dir/upgraded" "$dir/all"
for name in daemon client; do
    certificate "slipway-buildkit-$name-tls"
    new=$dir/slipway-buildkit-$name-tls
    old=$dir/old-$name
    cmp -s "$new/tls.crt" "$old/tls.crt" && fail "the $name's certificate is the old one"
    cmp -s "$new/ca.crt" "$old/ca.crt" && fail "the authority is the old one"
    # Either side may have its new certificate first.
    openssl verify -CAfile "$old/ca.crt" "$new/tls.crt" >"$dir/err" 2>&1 || fail "the $name's new certificate under the old authority: $(cat "$dir/err")"
    openssl verify -CAfile "$new/ca.crt" "$old/tls.crt" >"$dir/err" 2>&1 || fail "the $name's old certificate under the new authority: $(cat "$dir/err")"
done
cp "$dir/old" "$dir/all"
upgrade "certificates for another name are made anew" 's/slipway.names: "slipway-buildkit.openfaas,.*/slipway\/names: "other"/'
[ "$(entries "$dir/all" | grep -c .)" = "$(entries "$dir/upgraded" | grep -c .)" ] || fail "another number of entries"
[ "$(entries "$dir/all")" != "$(entries "$dir/upgraded")" ] || fail "they are the old ones"

# refused NAME TEXT ARGUMENTS…: an upgrade of the installed chart must fail with TEXT, before anything is applied
refused() {
    installed=$chart
    chart=$dir/upgrade
    rejects "$@"
    chart=$installed
}
stored ''
case="an upgrade with the same volume"
"$helm" template "$release" "$dir/upgrade" --namespace openfaas --kube-version 1.33.0 --set buildkit.persistence.size=51200Mi >"$dir/out" 2>"$dir/err" || fail "$(cat "$dir/err")"
refused "an upgrade that would change the volume's size" "buildkit.persistence.size: 60Gi, but the installed daemon has 50Gi" --set buildkit.persistence.size=60Gi
refused "an upgrade that would change the volume's class" 'buildkit.persistence.storageClass: "fast", but the installed daemon has ""' --set buildkit.persistence.storageClass=fast
refused "an upgrade that would remove the volume" "buildkit.persistence.enabled: false, but the installed daemon has true" --set buildkit.persistence.enabled=false

# The job that renews certificates, with a Kubernetes API that is files: GET answers with $dir/api/SECRET, PATCH writes
# $dir/api/SECRET.patch.
mkdir -p "$dir/bin" "$dir/account"
real=$(command -v openssl)
cat >"$dir/bin/openssl" <<EOF
#!/bin/sh
[ "\$1" = s_client ] || exec "$real" "\$@"
echo "\$*" >>"$dir/connections"
read -r method path rest
name=\${path##*/}
while read -r line && [ -n "\${line%?}" ]; do :; done
status='200 OK'
case \$method in
GET) [ -f "$dir/api/\$name" ] || status='404 Not Found' ;;
PATCH) cat >"$dir/api/\$name.patch" ;;
esac
printf 'HTTP/1.0 %s\r\nContent-Type: application/json\r\n\r\n' "\$status"
cat "$dir/api/\$name" 2>/dev/null || echo '{"kind":"Status","message":"no such secret"}'
EOF
chmod +x "$dir/bin/openssl"
echo token >"$dir/account/token"
# secret SECRET: gives the API the secret in $dir/SECRET
secret() {
    {
        printf '{"kind":"Secret","metadata":{"name":"%s","resourceVersion":"7"},"data":{' "$1"
        for entry in ca.crt tls.crt; do
            [ ! -s "$dir/$1/$entry" ] || printf '"%s":"%s",' "$entry" "$(openssl base64 -A -in "$dir/$1/$entry")"
        done
        printf '"tls.key":"%s"}}' "$(openssl base64 -A -in "$dir/$1/tls.key")"
    } >"$dir/api/$1"
}
# renew DAYS: runs the job
renew() {
    rm -rf "$dir/api" "$dir/connections"
    mkdir "$dir/api"
    for name in authority daemon-tls client-tls; do secret "slipway-buildkit-$name"; done
    env PATH="$dir/bin:$PATH" KUBERNETES_SERVICE_HOST=fd00::1 KUBERNETES_SERVICE_PORT=443 ACCOUNT="$dir/account" DAYS="$1" \
        AUTHORITY=openfaas/slipway-buildkit-authority DAEMON=openfaas/slipway-buildkit-daemon-tls \
        CLIENT=fn/slipway-buildkit-client-tls DAEMON_NAMES=slipway-buildkit.openfaas,slipway-buildkit.openfaas.svc \
        CLIENT_NAMES=builder-fn sh "$chart/files/renew.sh" >"$dir/out" 2>"$dir/err"
}
# patched SECRET: keeps the files of the patch in $dir/new-SECRET
patched() {
    mkdir -p "$dir/new-$1"
    for entry in ca.crt tls.crt tls.key; do
        sed -n "s/.*\"$entry\":\"\([^\"]*\)\".*/\1/p" "$dir/api/$1.patch" | openssl base64 -d -A >"$dir/new-$1/$entry"
    done
}
cp "$dir/old" "$dir/all"
for name in authority daemon-tls client-tls; do certificate "slipway-buildkit-$name"; done
case="the job keeps certificates with more than a third of their time left"
renew 365 || fail "$(cat "$dir/err")"
[ ! -s "$dir/out" ] && [ -z "$(find "$dir/api" -name '*.patch')" ] || fail "it renewed $(cat "$dir/out")"
case="the job checks the certificate of the Kubernetes API"
[ "$(grep -c -e '-verify_return_error .*-verify_hostname kubernetes.default.svc -connect \[fd00::1\]:443$' "$dir/connections")" = 3 ] || fail "$(cat "$dir/connections")"
case="the job renews certificates with less than a third of their time left"
# Of 3650 days, a third is more than they have.
renew 3650 || fail "$(cat "$dir/err")"
count 3 '^renewed '
patched slipway-buildkit-authority
for pair in daemon:sslserver client:sslclient; do
    name=slipway-buildkit-${pair%:*}-tls
    patched "$name"
    cmp -s "$dir/new-$name/ca.crt" "$dir/new-slipway-buildkit-authority/tls.crt" || fail "$name has another authority"
    cmp -s "$dir/new-$name/tls.crt" "$dir/$name/tls.crt" && fail "$name is the old one"
    # Either side may have its new certificate first.
    for authority in "$dir/new-$name/ca.crt" "$dir/$name/ca.crt"; do
        for folder in "$dir/new-$name" "$dir/$name"; do
            openssl verify -purpose "${pair#*:}" -CAfile "$authority" "$folder/tls.crt" >"$dir/err" 2>&1 || fail "$name: $(cat "$dir/err")"
        done
    done
    [ "$(openssl pkey -in "$dir/new-$name/tls.key" -pubout)" = "$(openssl x509 -in "$dir/new-$name/tls.crt" -noout -pubkey)" ] || fail "$name: the key is of another certificate"
    openssl x509 -in "$dir/new-$name/tls.crt" -noout -checkend $((3640 * 86400)) >/dev/null || fail "$name ends too early"
    grep -q '"resourceVersion":"7"' "$dir/api/$name.patch" || fail "$name would overwrite a newer version"
done
cmp -s "$dir/new-slipway-buildkit-authority/tls.key" "$dir/slipway-buildkit-authority/tls.key" || fail "the authority has another key"
[ "$(openssl x509 -in "$dir/new-slipway-buildkit-authority/tls.crt" -noout -subject)" = "$(openssl x509 -in "$dir/slipway-buildkit-authority/tls.crt" -noout -subject)" ] || fail "the authority has another name"
openssl x509 -in "$dir/new-slipway-buildkit-daemon-tls/tls.crt" -noout -checkhost slipway-buildkit.openfaas.svc | grep -q 'does match' || fail "the daemon's certificate has another name"
case="the job finishes what a run began that ended early"
cp "$dir/new-slipway-buildkit-authority/tls.crt" "$dir/slipway-buildkit-authority/tls.crt"
renew 365 || fail "$(cat "$dir/err")"
count 2 '^renewed '
case="the job fails without an authority"
rm "$dir/slipway-buildkit-authority/tls.crt"
! renew 365 || fail "it succeeded"
grep -q 'the secret openfaas/slipway-buildkit-authority has no authority' "$dir/err" || fail "$(cat "$dir/err")"
begin "renewal by upgrades only" --set buildkit.tls.renewal.enabled=false,deployer.kubernetesReadiness=false
has_not 'kind: CronJob'
has_not 'kind: Role'

begin "certificates of cert-manager" --set buildkit.tls.certManager.enabled=true
has_not 'kind: Secret'
has_not 'kind: CronJob'
count 2 '^kind: ClusterIssuer$'
count 3 '^kind: Certificate$'
count 1 '    - slipway-buildkit.openfaas$'
count 2 '    name: slipway-buildkit-authority$'
has 'secretName: slipway-buildkit-daemon-tls'
count 1 'rotationPolicy: Never$'
begin "certificates of an issuer of one's own" --set buildkit.tls.certManager.enabled=true,buildkit.tls.certManager.issuer.name=corporate
count 0 '^kind: ClusterIssuer$'
count 2 '^kind: Certificate$'
count 2 '    name: corporate$'
begin "certificates of one's own" --set buildkit.tls.daemonSecret=daemon,buildkit.tls.clientSecret=client
has_not 'kind: Secret'
has 'value: "slipway-buildkit.openfaas"'
has 'secretName: daemon'
count 3 'name: client$'
begin "mutual TLS with an existing BuildKit" --set buildkit.enabled=false,buildkit.url=tcp://buildkit.build:1234,buildkit.tls.clientSecret=client
count 1 'path: buildkit-cert$'
has_not 'buildkit_server_name'
begin "plain TCP" --set buildkit.plaintext=true
count 1 '- name: buildkit_plaintext$'
has_not 'kind: Secret'
has_not '--tls'
has_not 'buildkit-ca'
rejects "one of two TLS secrets" "daemonSecret and clientSecret" --set buildkit.tls.daemonSecret=daemon
rejects "plain TCP and certificates" "buildkit.plaintext: should be false" --set buildkit.plaintext=true,buildkit.tls.clientSecret=client
rejects "an existing BuildKit without certificates" "needs clientSecret" --set buildkit.enabled=false,buildkit.url=tcp://buildkit.build:1234

begin "limits on senders without a verified signature"
count 1 '- name: unverified_limit$'
count 2 '- name: unverified_senders$'
count 2 '- name: receive_grace$'
count 2 '- name: max_connections$'
has 'value: "4294967296"'
has 'sizeLimit: 5Gi'
# A slow build is no slow sender: the limits on heads and pauses are the host's.
has_not '- name: read_timeout'
has_not '- name: write_timeout'
rejects "a spool volume without room for bodies that are not verified" "builder.spool.sizeLimit: 4Gi, and at least 5368709120 bytes" --set builder.spool.sizeLimit=4Gi
rejects "a spool that one tenant could fill" "builder.spool.limit: 2147483647, and at least 2147483648 is right with policy.tenants" -f "$dir/tenants.yaml" --set builder.spool.limit=2147483647
rejects "a spool that is smaller than a body" "builder.spool.limit: 4294967296, and at least the setting max_body (8589934592)" --set-string builder.env.max_body=8589934592
rejects "no room for one body that is not verified" "builder.unverified.limit: 1, and at least the setting max_body" --set builder.unverified.limit=1
begin "a limit on the memory of each step" --set builder.steps.memory=1.5Gi
has_not 'name: step_memory'
part statefulset.yaml
has 'name: STEP_MEMORY'
has 'value: "1610612736"'
begin "limits on each step of a daemon of one's own" --set builder.steps.memory=1.5Gi,buildkit.enabled=false,buildkit.url=tcp://daemon:1234,buildkit.tls.clientSecret=tls --set-string builder.steps.cpus=1.5
has 'name: step_memory'
has 'value: "1610612736"'
has 'value: "1.5"'
begin "steps without a limit on memory"
part statefulset.yaml
has 'name: STATE'
begin "a rootless daemon has no guard" --kube-version 1.32.0
part statefulset.yaml
has_not 'name: STATE'
rejects "a limit on CPUs that has no effect" "builder.steps.cpus: should be empty with buildkit.enabled=true" --set-string builder.steps.cpus=1.5
rejects "a limit on memory that has no effect" "builder.steps.memory: should be empty with buildkit.isolation=rootless" --set builder.steps.memory=1Gi,buildkit.isolation=rootless
rejects "too little memory for a step" "builder.steps.memory: 1Mi, and at least 8Mi" --set builder.steps.memory=1Mi
rejects "a step's CPUs that are no number" "/builder/steps/cpus" --set builder.steps.cpus=many
begin "private sources" --set 'builder.allowedSources={files.internal,mirror.internal:8080}'
has 'value: "files.internal,mirror.internal:8080"'
has_not '- name: git_tokens'
cat >"$dir/git-tokens.yaml" <<'END'
builder:
  gitTokens:
    - url: https://github.com/acme/
      secret: { name: github-token, key: token }
    - url: https://git.example/
      secret: { name: git-token, key: token }
  statusTokens:
    - url: https://api.github.com/repos/acme/
      secret: { name: github-statuses, key: token }
END
begin "tokens for git repositories" -f "$dir/git-tokens.yaml"
count 1 'value: "https://github.com/acme/=git-token-0,https://git.example/=git-token-1"$'
count 1 'value: "https://api.github.com/repos/acme/=status-token-0"$'
count 2 'value: ".*,git-token,github-statuses,github-token,.*"$'
count 1 'name: github-token$'
count 1 'path: git-token-1$'
count 1 'path: status-token-0$'
rejects "a token without a secret" "/builder/gitTokens/0" --set 'builder.gitTokens[0].url=https://git.example/'
has_not '- name: contexts_repository'
begin "stored contexts" --set builder.contexts.repository=registry.example/slipway/contexts
has '- name: contexts_repository'
has 'value: "registry.example/slipway/contexts"'
rejects "contexts that are deleted where none are stored" "builder.contexts.deleteBuilt: needs builder.contexts.repository" --set builder.contexts.deleteBuilt=true
begin "stored contexts of tenants" -f "$dir/tenants.yaml" --set builder.contexts.repository=registry.example/slipway/contexts
has 'registry-config'

has_not '- name: records_repository'
has_not '- name: cache_registry'
begin "records of builds" --set builder.records.repository=registry.example/slipway/records
has '- name: records_repository'
has 'value: "registry.example/slipway/records"'
begin "caches in a registry" --set builder.cacheRegistry=registry.example/slipway/caches
has '- name: cache_registry'
has 'value: "registry.example/slipway/caches"'
begin "records of builds of tenants" -f "$dir/tenants.yaml" --set builder.records.repository=registry.example/slipway/records
has 'registry-config'

begin "tenants" -f "$dir/tenants.yaml"
count 1 '^  policy.json: |$'
count 2 'mountPath: /etc/slipway$'
count 2 '- name: policy_file$'
count 3 'name: slipway-policy$'
part builder.yaml
has 'path: acme-payload'
has 'path: acme-registry'
has 'name: registry-of-acme'
has_not 'path: acme-deploy'
# Only tenants' keys sign builds, and only their credentials are used.
has_not 'path: payload-secret'
has_not 'path: registry-config'
begin "tenants' secrets of the deployer" -f "$dir/tenants.yaml"
# What no function gets: all secrets of these values, by their names in the cluster.
count 2 'value: "acme-deploy,acme-payload,acme-pull,basic-auth,deploy-secret,payload-secret,registry-config,registry-of-acme,slipway-buildkit-authority,slipway-buildkit-client-tls,slipway-buildkit-daemon-tls"$'
part deployer.yaml
has 'path: acme-deploy'
has 'path: acme-pull'
has_not 'path: acme-payload'
has_not 'path: acme-registry'
notes "the notes list the tenants' secrets" -f "$dir/tenants.yaml"
count 1 '^  registry-of-acme (key config.json)$'
count 0 '^  payload-secret '
rejects "a policy with a secret that is not listed" "policy.tenants.acme.keys names the secret acme-payload, and secrets.tenants should have it" --set 'policy.tenants.acme.keys={acme-payload}'
rejects "a deployer's secret that is not listed" "policy.tenants.acme.pullConfig names the secret acme-pull" --set policy.tenants.acme.pullConfig=acme-pull
begin "names that no build uses" --set 'secrets.protected={database},protectedFunctions={dashboard},otel.headers.name=collector,imagePullSecrets={pull}'
count 2 '- name: protected_functions$'
count 2 'value: "dashboard"$'
count 2 'value: "basic-auth,collector,database,deploy-secret,payload-secret,pull,registry-config,'

begin "names in a namespace that functions share with OpenFaaS" --set functionNamespace=openfaas
count 2 'value: "alertmanager,basic-auth-plugin,gateway,gateway-external,gateway-provider,nats,prometheus,queue-worker,slipway-buildkit,slipway-renewal"$'

begin "steps with a network of their own"
part statefulset.yaml
has 'hostUsers: false'
has 'image: docker.io/moby/buildkit:v0.34.2'
has 'value: own'
has_not 'no-process-sandbox'
has '169.254.0.0/16'
# The pod cannot use up the node.
has 'memory: 8Gi'
has 'ephemeral-storage: 10Gi'
has 'name: MAX_PROCESSES'
begin "the daemon's table is one"
part config.yaml
count 1 '\[worker.oci\]'
has 'networkMode = "cni"'
begin "a configuration without the daemon's table" --set 'buildkit.config=debug = true'
part config.yaml
count 1 '\[worker.oci\]'
begin "steps without a network" --kube-version 1.32.0
has 'image: docker.io/moby/buildkit:v0.34.2-rootless'
has 'value: none'
has 'cniConfigPath = "/run/user/1000/buildkit/steps.conflist"'
has_not 'hostUsers'
has_not 'NET_ADMIN'
begin "steps in the daemon's network" --set buildkit.isolation=rootless,buildkit.stepNetwork=daemon
has 'value: daemon'
has 'networkMode = "host"'
rejects "a network of steps' own in a rootless daemon" "own needs buildkit.isolation=userNamespace" --set buildkit.isolation=rootless,buildkit.stepNetwork=own
rejects "a network mode in the daemon's configuration" "set buildkit.stepNetwork" --set 'buildkit.config=networkMode = "host"'

# The scripts of the daemon's pod, with programs that write down their arguments.
for name in iptables ip6tables buildkitd rootlesskit; do
    printf '#!/bin/sh\n[ "$1" = -C ] && exit 1\necho "%s $*" >>"%s/calls"\n' "$name" "$dir" >"$dir/bin/$name"
done
for name in bridge loopback host-local; do printf '#!/bin/sh\necho %s\ncat\n' "$name" >"$dir/bin/buildkit-cni-$name"; done
chmod +x "$dir/bin/"*
# started VARIABLE…: runs start.sh; keeps the calls of programs in $dir/out
started() {
    rm -rf "$dir/run" "$dir/calls"
    env PATH="$dir/bin:$PATH" BUILDKIT_HOST="unix://$dir/run/buildkitd.sock" MAX_PROCESSES=4096 NODE=192.0.2.1 BLOCKED='10.0.0.0/8 fc00::/7' \
        TENANTS= INTERNET=all ALLOWED= "$@" sh "$chart/files/start.sh" --config=x >"$dir/err" 2>&1 || fail "$(cat "$dir/err")"
    mv "$dir/calls" "$dir/out"
}
# network PLUGIN ARGUMENTS: runs the CNI plugin of steps; keeps what BuildKit's gets in $dir/out
network() {
    : >"$dir/run/traces.sock"
    printf '{"bridge":"steps","ipam":{"ranges":[[{"subnet":"198.18.0.0/16"}]]},"prevResult":{"ips":[{"address":"198.18.0.2/16"}]}}\n' |
        env PATH="$dir/bin:$PATH" CNI_ARGS="$2" "$dir/run/cni/$1" >"$dir/out" || fail "$1 failed"
    [ ! -e "$dir/run/traces.sock" ] || fail "the daemon's socket for traces is still there"
}
# order FIRST NEXT: both lines are there, in this order
order() {
    [ "$(grep -n -F -x -e "$1" "$dir/out" | head -n 1 | cut -d: -f1)" -lt "$(grep -n -F -x -e "$2" "$dir/out" | tail -n 1 | cut -d: -f1)" ] || fail "no \"$1\" before \"$2\" in $(cat "$dir/out")"
}
case="steps reach the internet, and no blocked network"
started STEP_NETWORK=own ALLOWED=10.1.2.3/32
order 'iptables -A STEPS -d 10.1.2.3/32 -j ACCEPT' 'iptables -A STEPS -d 10.0.0.0/8 -j REJECT'
order 'iptables -A FORWARD -o steps+ -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP' 'iptables -A FORWARD -i steps -j STEPS'
order 'iptables -A STEPS -d 192.0.2.1 -j REJECT' 'iptables -A FORWARD -i steps -j STEPS'
has 'ip6tables -A STEPS -d fc00::/7 -j REJECT'
has_not 'iptables -A STEPS -j REJECT'
has "--otel-socket-path=$dir/run/traces.sock --config=x"
case="steps reach what is listed and nothing else"
started STEP_NETWORK=own ALLOWED=203.0.113.7/32 INTERNET=none
order 'iptables -A STEPS -d 203.0.113.7/32 -j ACCEPT' 'iptables -A STEPS -j REJECT'
has 'ip6tables -A STEPS -j REJECT'
case="a tenant's steps reach what its list has, and others do not, nor does the daemon"
started STEP_NETWORK=own ALLOWED=10.1.2.3/32 TENANTS="acme false 10.7.7.7/32 fd00::7/128
other true"
has_not 'iptables -A STEPS -d 10.7.7.7/32 -j ACCEPT'
has_not 'iptables -A STEPS1 -d 10.1.2.3/32 -j ACCEPT'
order 'iptables -A STEPS1 -d 10.7.7.7/32 -j ACCEPT' 'iptables -A STEPS1 -j REJECT'
has 'ip6tables -A STEPS1 -d fd00::7/128 -j ACCEPT'
has 'iptables -A FORWARD -i steps1 -j STEPS1'
has 'iptables -A STEPS2 -d 10.0.0.0/8 -j REJECT'
has_not 'iptables -A STEPS2 -j REJECT'
order 'iptables -A DAEMON -d 10.1.2.3/32 -j RETURN' 'iptables -A DAEMON -d 10.7.7.7/32 -j CLOSED'
has 'ip6tables -A DAEMON -d fd00::7/128 -j CLOSED'
has 'iptables -A CLOSED -d 10.0.0.0/8 -j REJECT'
# What a tenant lists of the internet, the daemon reaches like the rest of it.
has_not 'iptables -A CLOSED -j REJECT'
has 'iptables -A OUTPUT -j DAEMON'
case="the daemon reaches the internet, and steps do not"
started STEP_NETWORK=own INTERNET=daemon TENANTS="acme true 203.0.113.7/32"
has 'iptables -A STEPS -j REJECT'
has_not 'iptables -A STEPS1 -j REJECT'
has_not 'iptables -A CLOSED -j REJECT'
case="neither reaches the internet"
started STEP_NETWORK=own INTERNET=none TENANTS="acme false 203.0.113.7/32
other false"
has 'iptables -A CLOSED -j REJECT'
case="a tenant's steps get its bridge"
for arguments in 'IgnoreUnknown=1;K8S_POD_NAME=other' 'K8S_POD_NAME=other;IgnoreUnknown=1' 'K8S_POD_NAME=other'; do
    network step-bridge "$arguments"
    has '{"bridge":"steps2","ipam":{"ranges":[[{"subnet":"198.19.2.0/24"}]]},"prevResult":{"ips":[{"address":"198.18.0.2/16"}]}}'
done
case="other steps get the bridge of all"
for arguments in '' 'K8S_POD_NAME=acm' 'K8S_POD_NAME=other2' 'K8S_POD_NAME=.*' 'K8S_POD_NAME=' 'XK8S_POD_NAME=other' \
    'IgnoreUnknown=K8S_POD_NAME=other'; do
    network step-bridge "$arguments"
    has '{"bridge":"steps","ipam":{"ranges":[[{"subnet":"198.18.0.0/16"}]]}'
done
case="steps without a network do not get the socket either"
started STEP_NETWORK=none
network step-loopback ''
has 'loopback'
has_not 'iptables'

begin "rules for the steps of tenants" -f "$dir/tenants.yaml" --set-json 'networkPolicy.tenants={"acme":{"allowedToSteps":["10.7.7.7/32"]}}' --set networkPolicy.internetToSteps=false
has 'value: "acme false 10.7.7.7/32"'
has 'value: daemon'
count 1 'cidr: 10.7.7.7/32$'
# The daemon still reaches the internet.
has '0.0.0.0/0'
rejects "rules for the steps of an unknown tenant" "networkPolicy.tenants.acme: should be a tenant of policy.tenants" --set networkPolicy.tenants.acme.internetToSteps=true
rejects "rules for the steps of tenants without a network of steps" "networkPolicy.tenants: needs steps with a network" -f "$dir/tenants.yaml" --set networkPolicy.tenants.acme.internetToSteps=true,buildkit.stepNetwork=none
rejects "a tenant's steps on an internet that is closed" "networkPolicy.tenants.acme.internetToSteps: should be false" -f "$dir/tenants.yaml" --set networkPolicy.tenants.acme.internetToSteps=true,networkPolicy.internetToBuilds=false

begin "egress of the daemon"
part networkpolicies.yaml
sed -n '/name: slipway-buildkit$/,$p' "$dir/out" | sed -n '/^  egress:/,$p' >"$dir/egress"
mv "$dir/egress" "$dir/out"
for network in 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 169.254.0.0/16 168.63.129.16/32 127.0.0.0/8 fc00::/7 fe80::/10 64:ff9b::a9fe:0/112; do
    count 1 "- $network$"
done
has 'kubernetes.io/metadata.name: kube-system'
count 2 'port: 53$'
begin "no internet for builds" --set 'networkPolicy.internetToBuilds=false,networkPolicy.allowedToBuilds={203.0.113.0/24}'
has_not '0.0.0.0/0'
has 'cidr: 203.0.113.0/24'
has 'value: "203.0.113.0/24"'
begin "a registry in the cluster" --set-json 'networkPolicy.allowedToDaemon=[{"to":[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"registry"}}}],"ports":[{"port":5000}]}]'
count 1 'kubernetes.io/metadata.name: registry$'
count 1 'port: 5000$'

begin "other limits on records of builds" --set buildkit.history.maxAge=72h,buildkit.history.maxEntries=1000000
has 'maxAge = "72h"'
has 'maxEntries = 1000000'
begin "one daemon"
has 'value: "tcp://slipway-buildkit.openfaas:1234"'
count 1 'publishNotReadyAddresses: true$'
begin "several daemons, each with a name that stays" --set buildkit.replicas=3
has 'value: "tcp://slipway-buildkit-0.slipway-buildkit.openfaas:1234,tcp://slipway-buildkit-1.slipway-buildkit.openfaas:1234,tcp://slipway-buildkit-2.slipway-buildkit.openfaas:1234"'
# Certificates are for the name that all daemons share.
count 1 'name: buildkit_server_name$'
has 'value: "slipway-buildkit.openfaas"'
count 1 'publishNotReadyAddresses: true$'
begin "no daemon for now" --set buildkit.replicas=0
has 'value: "tcp://slipway-buildkit.openfaas:1234"'
begin "several existing daemons" --set 'buildkit.enabled=false,buildkit.url=tcp://a.build:1234\,tcp://b.build:1234,buildkit.tls.clientSecret=client'
has 'value: "tcp://a.build:1234,tcp://b.build:1234"'
begin "daemons for two platforms" --set 'buildkit.enabled=false,buildkit.url=tcp://a.build:1234\,linux/arm64=tcp://b.build:1234\,linux/arm/v7=tcp://b.build:1234,buildkit.tls.clientSecret=client'
has 'value: "tcp://a.build:1234,linux/arm64=tcp://b.build:1234,linux/arm/v7=tcp://b.build:1234"'
rejects "a platform without an address" "buildkit.url" --set 'buildkit.enabled=false,buildkit.url=linux/arm64=,buildkit.plaintext=true'
rejects "an address without a port among several" "buildkit.url" --set 'buildkit.enabled=false,buildkit.url=tcp://a.build:1234\,tcp://b.build,buildkit.plaintext=true'

begin "no deployer" --set deployer.replicas=0
has 'replicas: 0'

begin "fresh requests only" --set builder.maxAge=1h30m,builder.requireFresh=true
has 'value: "1h30m"'
begin "hand-overs that wait longer" --set builder.handOverTtl=6h
has 'value: "6h"'
begin "requests as old as BuildKit's records" --set builder.maxAge=2880m,buildkit.history.maxAge=48h
begin "an existing BuildKit with records of its own" --set builder.maxAge=72h,buildkit.enabled=false,buildkit.url=tcp://buildkit.build:1234,buildkit.tls.clientSecret=client

rejects "fresh requests without an age" "builder.requireFresh: needs builder.maxAge" --set builder.requireFresh=true
rejects "requests older than BuildKit's records" "builder.maxAge: 48h1s, and at most buildkit.history.maxAge (48h)" --set builder.maxAge=48h1s
rejects "two deployers" "deployer.replicas: 2, and at most 1 is right" --set deployer.replicas=2
rejects "two tables for records of builds" "buildkit.config: must not have the table .history." --set-json 'buildkit={"config":"[history]\nmaxAge = 1"}'
rejects "records of builds without an age" "/buildkit/history/maxAge" --set buildkit.history.maxAge=3
rejects "no BuildKit" "buildkit.url: required" --set buildkit.enabled=false,buildkit.plaintext=true
rejects "a misspelt value" "additional properties 'replica' not allowed" --set builder.replica=2
rejects "an invalid queueWait" "/builder/queueWait" --set builder.queueWait=long
rejects "an invalid timeout" "/builder/timeout" --set builder.timeout=soon
rejects "an invalid digest" "/deployer/image/digest" --set deployer.image.digest=latest
rejects "a collector without a scheme" "/otel/endpoint" --set otel.endpoint=collector:4318
rejects "a collector with a password" "/otel/endpoint" --set otel.endpoint=http://me:secret@collector:4318
rejects "a variable other than OTEL_* for traces" "log_level. does not match" --set otel.env.log_level=debug
rejects "a number as environment variable" "/builder/env/a" --set builder.env.a=1

tests/daemon-scripts.sh || failed=1
[ "$failed" = 0 ] || exit 1
echo "chart/slipway: all checks passed"
