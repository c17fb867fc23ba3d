{{/* The name prefix of all objects other than the functions. */}}
{{- define "slipway.fullname" -}}
{{- if contains "slipway" .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-slipway" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "slipway.buildkit.name" -}}
{{- printf "%s-buildkit" (include "slipway.fullname" .) -}}
{{- end -}}

{{/* The recommended labels of an object. Arguments: dict "root" . "component" "builder" */}}
{{- define "slipway.labels" -}}
app.kubernetes.io/name: slipway
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: slipway
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* The labels that select BuildKit's pods. */}}
{{- define "slipway.buildkit.selector" -}}
app.kubernetes.io/name: slipway
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: buildkit
{{- end -}}

{{/* An image reference, by digest if one is set, else by tag. Arguments: dict "root" . "image" … "tag" … */}}
{{- define "slipway.image" -}}
{{- $repository := .image.repository -}}
{{- with .root.Values.global.imageRegistry -}}
{{- $host := regexFind "^[^/]+/" $repository -}}
{{- if or (regexMatch "[.:]" $host) (eq $host "localhost/") -}}
{{- $repository = trimPrefix $host $repository -}}
{{- end -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) $repository -}}
{{- end -}}
{{- if .image.digest -}}
{{ $repository }}@{{ .image.digest }}
{{- else -}}
{{ $repository }}:{{ .tag }}
{{- end -}}
{{- end -}}

{{/* The field imagePullSecrets of a pod. Arguments: dict "root" . "names" (list …) */}}
{{- define "slipway.pullSecrets" -}}
{{- $names := .names -}}
{{- range .root.Values.global.imagePullSecrets -}}
{{- $names = append $names (ternary . (get (ternary dict . (kindIs "string" .)) "name") (kindIs "string" .)) -}}
{{- end -}}
{{- with $names | uniq }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Fields of a pod that the values of a part may set. Argument: the part's values */}}
{{- define "slipway.pod.options" -}}
{{- with .serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A duration in whole seconds. Argument: a text such as 1h30m */}}
{{- define "slipway.seconds" -}}
{{- div (add (include "slipway.milliseconds" . | int64) 999) 1000 -}}
{{- end -}}

{{/*
The grace period of a pod in seconds: what the values set, or the longest work and a margin. Fails if the work would not fit.
Arguments: dict "name" "builder" "set" 0 "work" "30m" "workName" "builder.timeout" "margin" 60
*/}}
{{- define "slipway.grace" -}}
{{- $work := include "slipway.seconds" .work | int64 -}}
{{- $set := .set | int64 -}}
{{- if and $set (le $set $work) -}}
{{- fail (printf "%s.terminationGracePeriodSeconds: %d, and more than %s (%s) is right; 0 stands for %d" .name $set .workName .work (add $work .margin)) -}}
{{- end -}}
{{- ternary $set (add $work .margin) (gt $set 0) -}}
{{- end -}}

{{/* The longest duration of a deployment, such as 360s. */}}
{{- define "slipway.deployer.timeout" -}}
{{- $ready := include "slipway.seconds" .Values.deployer.readyTimeout | int64 -}}
{{- $timeout := .Values.deployer.timeout | default (printf "%ds" (add $ready 60)) -}}
{{- if lt (include "slipway.seconds" $timeout | int64) (add $ready 25) -}}
{{- fail (printf "deployer.timeout: %s, and at least deployer.readyTimeout (%s) and 25s are right, so that a rollback fits in; empty stands for %ds" $timeout .Values.deployer.readyTimeout (add $ready 60)) -}}
{{- end -}}
{{- $timeout -}}
{{- end -}}

{{/*
The address of the daemon, or the addresses of several, separated by commas. Each of several has the name of its pod, by
which the builder chooses among them: a name stays when the pod gets another IP address.
*/}}
{{- define "slipway.buildkit.url" -}}
{{- if .Values.buildkit.enabled -}}
{{- $name := include "slipway.buildkit.name" . -}}
{{- $service := printf "%s.%s:1234" $name .Release.Namespace -}}
{{- $urls := list -}}
{{- range $number := until (int .Values.buildkit.replicas) -}}
{{- $urls = append $urls (printf "tcp://%s-%d.%s" $name $number $service) -}}
{{- end -}}
{{- if gt (len $urls) 1 -}}
{{- join "," $urls -}}
{{- else -}}
{{- printf "tcp://%s" $service -}}
{{- end -}}
{{- else -}}
{{- required "buildkit.url: required if buildkit.enabled is false" .Values.buildkit.url -}}
{{- end -}}
{{- end -}}

{{/* How the daemon is kept apart from the node: "userNamespace" or "rootless". */}}
{{- define "slipway.buildkit.isolation" -}}
{{- .Values.buildkit.isolation | default (ternary "userNamespace" "rootless" (semverCompare ">=1.33.0-0" .Capabilities.KubeVersion.Version)) -}}
{{- end -}}

{{/* The network of build steps: "own", "none" or "daemon". */}}
{{- define "slipway.buildkit.stepNetwork" -}}
{{- $rootless := eq "rootless" (include "slipway.buildkit.isolation" .) -}}
{{- if and $rootless (eq .Values.buildkit.stepNetwork "own") -}}
{{- fail "buildkit.stepNetwork: own needs buildkit.isolation=userNamespace; none and daemon work with rootless too" -}}
{{- end -}}
{{- .Values.buildkit.stepNetwork | default (ternary "none" "own" $rootless) -}}
{{- end -}}

{{/* The limit on the memory of a step in bytes; empty: none. Fails if limits on steps would have no effect. */}}
{{- define "slipway.steps.memory" -}}
{{- $steps := .Values.builder.steps -}}
{{- $bytes := "" -}}
{{- with $steps.memory -}}
{{- $bytes = include "slipway.bytes" . -}}
{{- if lt ($bytes | int64) 8388608 -}}
{{- fail (printf "builder.steps.memory: %s, and at least 8Mi is right" .) -}}
{{- end -}}
{{- end -}}
{{- if .Values.buildkit.enabled -}}
{{- if $steps.cpus -}}
{{- fail "builder.steps.cpus: should be empty with buildkit.enabled=true, where it has no effect: in a user namespace BuildKit gives steps no control groups. buildkit.resources.limits.cpu limits all steps together; for tenants that do not trust each other, install a release for each" -}}
{{- end -}}
{{- if and $steps.memory (ne "userNamespace" (include "slipway.buildkit.isolation" .)) -}}
{{- fail "builder.steps.memory: should be empty with buildkit.isolation=rootless, where it has no effect: BuildKit gives steps no control groups. buildkit.resources.limits.memory limits all steps together; for tenants that do not trust each other, install a release for each" -}}
{{- end -}}
{{- end -}}
{{- $bytes -}}
{{- end -}}

{{/* The rules for the steps of tenants, one tenant a line: NAME INTERNET ALLOWED… */}}
{{- define "slipway.buildkit.tenants" -}}
{{- $values := .Values.networkPolicy -}}
{{- $lines := list -}}
{{- if and $values.tenants (ne "own" (include "slipway.buildkit.stepNetwork" .)) -}}
{{- fail "networkPolicy.tenants: needs steps with a network of their own (buildkit.stepNetwork=own, buildkit.isolation=userNamespace)" -}}
{{- end -}}
{{- if gt (len $values.tenants) 250 -}}
{{- fail (printf "networkPolicy.tenants: %d tenants, and at most 250 are right" (len $values.tenants)) -}}
{{- end -}}
{{- range $name, $rules := $values.tenants -}}
{{- if not (hasKey $.Values.policy.tenants $name) -}}
{{- fail (printf "networkPolicy.tenants.%s: should be a tenant of policy.tenants" $name) -}}
{{- end -}}
{{- if and $rules.internetToSteps (not $values.internetToBuilds) -}}
{{- fail (printf "networkPolicy.tenants.%s.internetToSteps: should be false with networkPolicy.internetToBuilds=false; to close the internet to other steps, set networkPolicy.internetToSteps=false" $name) -}}
{{- end -}}
{{- $lines = append $lines (concat (list $name (toString ($rules.internetToSteps | default false))) ($rules.allowedToSteps | default list) | join " ") -}}
{{- end -}}
{{- join "\n" $lines -}}
{{- end -}}

{{/* The image of the daemon. The rootless variant of a tag is TAG-rootless. */}}
{{- define "slipway.buildkit.image" -}}
{{- $image := deepCopy .Values.buildkit.image -}}
{{- if and (eq "rootless" (include "slipway.buildkit.isolation" .)) (not (hasSuffix "-rootless" $image.tag)) -}}
{{- $_ := set $image "tag" (printf "%s-rootless" $image.tag) -}}
{{- end -}}
{{- if not (or $image.digest .Values.buildkit.image.tag) -}}
{{- fail "buildkit.image: should have a tag, such as v0.34.2, or a digest" -}}
{{- end -}}
{{- include "slipway.image" (dict "root" . "image" $image "tag" $image.tag) -}}
{{- end -}}

{{/* buildkitd.toml. The table worker.oci of the values gets the network of steps. */}}
{{- define "slipway.buildkit.config" -}}
{{- $config := .Values.buildkit.config -}}
{{- if regexMatch "(?m)^[ \\t]*\\[[ \\t]*history[ \\t]*\\]" $config -}}
{{- fail "buildkit.config: must not have the table [history]; set buildkit.history" -}}
{{- end -}}
{{- if regexMatch "(?m)^[ \\t]*(networkMode|cniConfigPath|cniBinaryPath|noProcessSandbox)[ \\t]*=" $config -}}
{{- fail "buildkit.config: must not have networkMode, cniConfigPath, cniBinaryPath and noProcessSandbox; set buildkit.stepNetwork and buildkit.isolation" -}}
{{- end -}}
{{- $run := ternary "/run/buildkit" "/run/user/1000/buildkit" (eq "userNamespace" (include "slipway.buildkit.isolation" .)) -}}
{{- $network := "  networkMode = \"host\"" -}}
{{- if ne "daemon" (include "slipway.buildkit.stepNetwork" .) -}}
{{- $network = printf "  networkMode = \"cni\"\n  cniConfigPath = \"%s/steps.conflist\"\n  cniBinaryPath = \"%s/cni\"" $run $run -}}
{{- end -}}
{{- $table := "(?m)^[ \\t]*\\[[ \\t]*worker[.]oci[ \\t]*\\].*$" -}}
{{- if regexMatch $table $config -}}
{{- $config = regexReplaceAll $table $config (printf "${0}\n%s" $network) -}}
{{- else -}}
{{- $config = printf "%s\n[worker.oci]\n%s" (trimSuffix "\n" $config) $network -}}
{{- end -}}
{{- range .Values.buildkit.insecureRegistries -}}
{{- if contains (printf "[registry.%q]" .) $config -}}
{{- fail (printf "buildkit.config: must not have the table [registry.%q]; buildkit.insecureRegistries makes it" .) -}}
{{- end -}}
{{- $config = printf "%s\n[registry.%q]\n  http = true" (trimSuffix "\n" $config) . -}}
{{- end -}}
{{- $config | trimSuffix "\n" }}
[history]
  maxAge = {{ .Values.buildkit.history.maxAge | quote }}
  maxEntries = {{ .Values.buildkit.history.maxEntries | int64 }}
{{- end -}}

{{/* A duration in milliseconds. Argument: a text such as 1h30m */}}
{{- define "slipway.milliseconds" -}}
{{- $units := dict "h" 3600000 "m" 60000 "s" 1000 "ms" 1 -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll "[0-9.]+(ms|[smh])" . -1 -}}
{{- $sum = addf $sum (mulf (regexFind "^[0-9.]+" .) (get $units (regexFind "[a-z]+$" .))) -}}
{{- end -}}
{{- $sum | int64 -}}
{{- end -}}

{{/* The environment variables for traces, for both functions. */}}
{{- define "slipway.otel.env" -}}
{{- with .Values.otel.endpoint -}}
{{- merge (dict "OTEL_EXPORTER_OTLP_ENDPOINT" .) $.Values.otel.env | toYaml -}}
{{- end -}}
{{- end -}}

{{/* The optional secrets of both functions. */}}
{{- define "slipway.shared.secrets" -}}
{{- $secrets := dict -}}
{{- with .Values.otel -}}
{{- if and .endpoint .headers.name -}}
{{- $_ := set $secrets "otel-headers" .headers -}}
{{- end -}}
{{- end -}}
{{- with .Values.secrets.gatewayCa -}}
{{- if .name -}}
{{- $_ := set $secrets "gateway-ca" . -}}
{{- end -}}
{{- end -}}
{{- $secrets | toYaml -}}
{{- end -}}

{{/* The policy of both functions as JSON; empty without tenants. */}}
{{- define "slipway.policy" -}}
{{- if .Values.policy.tenants -}}
{{- .Values.policy | toPrettyJson -}}
{{- end -}}
{{- end -}}

{{/*
The secrets that the policy names for a function, as YAML: dict FILE SECRET. Fails if the values do not list one of them.
Arguments: dict "root" . "members" (list "keys" "registryConfig"), the members of tenants with names of secrets
*/}}
{{- define "slipway.policy.secrets" -}}
{{- $root := .root -}}
{{- $members := .members -}}
{{- $listed := $root.Values.secrets.tenants -}}
{{- $secrets := dict -}}
{{- $missing := list -}}
{{- range $tenant, $rules := $root.Values.policy.tenants -}}
{{- range $member := $members -}}
{{- $names := get $rules $member | default list -}}
{{- range $name := ternary $names (list $names) (kindIs "slice" $names) -}}
{{- if hasKey $listed $name -}}
{{- $_ := set $secrets $name (get $listed $name) -}}
{{- else if eq $name "payload-secret" -}}
{{- $_ := set $secrets $name $root.Values.secrets.payload -}}
{{- else if and (eq $name "registry-config") (eq $member "registryConfig") -}}
{{- $_ := set $secrets $name $root.Values.secrets.registry -}}
{{- else -}}
{{- $missing = append $missing (printf "policy.tenants.%s.%s names the secret %s, and secrets.tenants should have it: %s: {name: %s, key: %s}" $tenant $member $name $name $name $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $missing -}}
{{- fail (join "\n" $missing) -}}
{{- end -}}
{{- $secrets | toYaml -}}
{{- end -}}

{{/* The names of the secrets that the values of a function give to its pods, as a YAML list. Argument: the function's values */}}
{{- define "slipway.pod.secrets" -}}
{{- $names := list -}}
{{- $environments := .envFrom -}}
{{- range $container := .initContainers -}}
{{- $environments = concat $environments ($container.envFrom | default list) -}}
{{- range $variable := $container.env -}}
{{- $names = append $names (dig "valueFrom" "secretKeyRef" "name" "" $variable) -}}
{{- end -}}
{{- end -}}
{{- range $environments -}}
{{- $names = append $names (dig "secretRef" "name" "" .) -}}
{{- end -}}
{{- range $volume := .extraVolumes -}}
{{- $names = append $names (dig "secret" "secretName" "" $volume) -}}
{{- range $source := dig "projected" "sources" list $volume -}}
{{- $names = append $names (dig "secret" "name" "" $source) -}}
{{- end -}}
{{- end -}}
{{- $names | compact | toYaml -}}
{{- end -}}

{{/* The names of the secrets that Slipway uses in this cluster, separated by commas: no function gets them. */}}
{{- define "slipway.protected.secrets" -}}
{{- $names := list -}}
{{- range $name, $secret := omit .Values.secrets "tenants" "protected" -}}
{{- $names = append $names $secret.name -}}
{{- end -}}
{{- range $name, $secret := .Values.secrets.tenants -}}
{{- $names = append $names $secret.name -}}
{{- end -}}
{{- range concat .Values.builder.gitTokens .Values.builder.statusTokens -}}
{{- $names = append $names .secret.name -}}
{{- end -}}
{{- $names = append $names .Values.otel.headers.name -}}
{{- $names = concat $names .Values.imagePullSecrets .Values.buildkit.imagePullSecrets .Values.secrets.protected -}}
{{- range .Values.global.imagePullSecrets -}}
{{- $names = append $names (ternary . (get (ternary dict . (kindIs "string" .)) "name") (kindIs "string" .)) -}}
{{- end -}}
{{- $names = concat $names (list (include "slipway.tls.daemon" .) (include "slipway.tls.client" .) (include "slipway.tls.authority" .)) -}}
{{- range $values := list .Values.builder .Values.deployer -}}
{{- $names = concat $names (include "slipway.pod.secrets" $values | fromYamlArray) -}}
{{- end -}}
{{- $names | compact | uniq | sortAlpha | join "," -}}
{{- end -}}

{{/* A quantity such as 5Gi in bytes. Argument: the text */}}
{{- define "slipway.bytes" -}}
{{- $units := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 -}}
{{- mulf (regexFind "^[0-9.]+" .) (get $units (regexFind "[A-Za-z]*$" .)) | int64 -}}
{{- end -}}

{{/* The settings about senders without a verified signature, as YAML. Argument: the function's values */}}
{{- define "slipway.unverified.env" -}}
max_connections: {{ .maxConnections | int64 | quote }}
unverified_senders: {{ .unverified.senders | int64 | quote }}
unverified_memory: {{ .unverified.memory | int64 | quote }}
receive_rate: {{ .unverified.rate | int64 | quote }}
receive_grace: {{ .unverified.grace | quote }}
{{- end -}}

{{/*
The names of functions that no build deploys, separated by commas. A function is a Deployment and a Service in
functionNamespace, so it must not have the name of one that is there already.
*/}}
{{- define "slipway.protected.functions" -}}
{{- $names := without (concat .Values.protectedFunctions (list .Values.builder.name .Values.deployer.name)) "builder-fn" "deployer-fn" -}}
{{- if and .Values.buildkit.enabled (eq .Release.Namespace .Values.functionNamespace) -}}
{{- $names = concat $names (list (include "slipway.buildkit.name" .) (include "slipway.tls.renewal" .)) -}}
{{- end -}}
{{- if eq .Values.gateway.namespace .Values.functionNamespace -}}
{{- $names = concat $names (list "alertmanager" "basic-auth-plugin" "gateway" "gateway-external" "gateway-provider" "nats" "prometheus" "queue-worker") -}}
{{- end -}}
{{- $names | uniq | sortAlpha | join "," -}}
{{- end -}}

{{/* The settings of both functions about tenants and what no tenant may use, as YAML. */}}
{{- define "slipway.shared.env" -}}
{{- $env := dict "protected_secrets" (include "slipway.protected.secrets" .) -}}
{{- with include "slipway.protected.functions" . -}}
{{- $_ := set $env "protected_functions" . -}}
{{- end -}}
{{- if include "slipway.policy" . -}}
{{- $_ := set $env "policy_file" "/etc/slipway/policy.json" -}}
{{- end -}}
{{- $env | toYaml -}}
{{- end -}}

{{/* The name of the service account with which the deployer reads the Kubernetes API. */}}
{{- define "slipway.deployer.account" -}}
{{- .Values.deployer.serviceAccountName | default .Values.deployer.name -}}
{{- end -}}

{{/*
The networks of the Kubernetes API, as a YAML list: those of the values, or else the addresses that the cluster has now. Empty
if the chart is rendered without a cluster.
*/}}
{{- define "slipway.kubernetes.networks" -}}
{{- $networks := .Values.networkPolicy.kubernetesApi.networks -}}
{{- if not $networks -}}
{{- range (lookup "v1" "Endpoints" "default" "kubernetes").subsets -}}
{{- range .addresses -}}
{{- $networks = append $networks (printf "%s/%s" .ip (ternary "128" "32" (contains ":" .ip))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $networks | toYaml -}}
{{- end -}}

{{/* The port of the trace collector. */}}
{{- define "slipway.otel.port" -}}
{{- $url := urlParse .Values.otel.endpoint -}}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) -}}
{{- $port | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end -}}

{{/*
A function as faas-netes would create it: a Deployment and a Service with the function's name and the label faas_function.
Arguments: dict "root" . "name" "builder-fn" "component" "builder" "values" .Values.builder "env" (dict …)
"secrets" (dict FILE SECRET …) "scratch" SIZE "functionLabels" (dict NAME TEXT …), the labels for the gateway, "grace" SECONDS
"iamAudience" AUDIENCE of a service account's token, if the function has one "readsKubernetes" whether the function reads the
Kubernetes API "autoscaled" whether something else sets the number of pods
*/}}
{{- define "slipway.function" -}}
{{- $labels := include "slipway.labels" (dict "root" .root "component" .component) -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  namespace: {{ .root.Values.functionNamespace }}
  labels:
    faas_function: {{ .name }}
    {{- $labels | nindent 4 }}
spec:
  {{- if not .autoscaled }}
  replicas: {{ .values.replicas }}
  {{- end }}
  revisionHistoryLimit: 10
  selector:
    matchLabels:
      faas_function: {{ .name }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: 0
      maxSurge: 1
  template:
    metadata:
      labels:
        faas_function: {{ .name }}
        {{- $labels | nindent 8 }}
        {{- with merge (dict) (.functionLabels | default dict) .values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        prometheus.io.scrape: "true"
        prometheus.io.port: "8081"
        {{- with .values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ .grace }}
      securityContext:
        {{- merge (deepCopy .values.podSecurityContext) (dict
          "runAsNonRoot" true
          "runAsUser" 12000
          "runAsGroup" 12000
          "fsGroup" 12000
          "seccompProfile" (dict "type" "RuntimeDefault")
        ) | toYaml | nindent 8 }}
      {{- with include "slipway.pullSecrets" (dict "root" .root "names" .root.Values.imagePullSecrets) | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with include "slipway.pod.options" .values | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      containers:
        - name: {{ .name }}
          image: {{ include "slipway.image" (dict "root" .root "image" .values.image "tag" (.values.image.tag | default .root.Chart.AppVersion)) }}
          imagePullPolicy: {{ .values.pullPolicy }}
          ports:
            - name: http
              containerPort: 8080
              protocol: TCP
            - name: metrics
              containerPort: 8081
              protocol: TCP
          env:
            {{- range $name, $text := merge (dict) .values.env .env (include "slipway.shared.env" .root | fromYaml) (include "slipway.unverified.env" .values | fromYaml) (include "slipway.otel.env" .root | fromYaml) }}
            - name: {{ $name }}
              value: {{ $text | quote }}
            {{- end }}
          {{- with .values.envFrom }}
          envFrom:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          livenessProbe:
            httpGet:
              path: /_/health
              port: http
            periodSeconds: 10
            timeoutSeconds: 5
          readinessProbe:
            httpGet:
              path: /_/ready
              port: http
            periodSeconds: 2
            timeoutSeconds: 5
          resources:
            {{- toYaml .values.resources | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: [ALL]
          volumeMounts:
            - name: secrets
              mountPath: /var/openfaas/secrets
              readOnly: true
            {{- if include "slipway.policy" .root }}
            # The folder, not the file: a changed policy appears in the running pod.
            - name: policy
              mountPath: /etc/slipway
              readOnly: true
            {{- end }}
            {{- if .scratch }}
            - name: temp
              mountPath: /tmp
            {{- end }}
            {{- if .iamAudience }}
            - name: token
              mountPath: /var/secrets/tokens
              readOnly: true
            {{- end }}
            {{- if .readsKubernetes }}
            - name: kubernetes
              mountPath: /var/run/secrets/kubernetes.io/serviceaccount
              readOnly: true
            {{- end }}
            {{- with .values.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - name: secrets
          projected:
            defaultMode: 0440
            sources:
              {{- range $file, $secret := merge (dict) .secrets (include "slipway.shared.secrets" .root | fromYaml) }}
              - secret:
                  name: {{ $secret.name }}
                  items:
                    - key: {{ $secret.key }}
                      path: {{ $file }}
              {{- end }}
        {{- if include "slipway.policy" .root }}
        - name: policy
          configMap:
            name: {{ include "slipway.fullname" .root }}-policy
        {{- end }}
        {{- if .scratch }}
        - name: temp
          emptyDir:
            sizeLimit: {{ .scratch }}
        {{- end }}
        {{- with .iamAudience }}
        - name: token
          projected:
            defaultMode: 0440
            sources:
              - serviceAccountToken:
                  path: openfaas-token
                  audience: {{ . }}
                  expirationSeconds: 7200
        {{- end }}
        {{- if .readsKubernetes }}
        - name: kubernetes
          projected:
            defaultMode: 0440
            sources:
              - serviceAccountToken:
                  path: token
                  expirationSeconds: 3607
              - configMap:
                  name: kube-root-ca.crt
                  items:
                    - key: ca.crt
                      path: ca.crt
        {{- end }}
        {{- with .values.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  namespace: {{ .root.Values.functionNamespace }}
  labels:
    {{- $labels | nindent 4 }}
spec:
  type: ClusterIP
  selector:
    faas_function: {{ .name }}
  ports:
    - name: http
      port: 8080
      targetPort: http
      protocol: TCP
{{- end -}}
