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

{{/* An image reference, by digest if one is set, else by tag. Arguments: dict "image" … "appVersion" … */}}
{{- define "slipway.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .appVersion }}
{{- end -}}
{{- end -}}

{{- define "slipway.buildkit.url" -}}
{{- if .Values.buildkit.enabled -}}
{{- printf "tcp://%s.%s:1234" (include "slipway.buildkit.name" .) .Release.Namespace -}}
{{- else -}}
{{- required "buildkit.url: required if buildkit.enabled is false" .Values.buildkit.url -}}
{{- end -}}
{{- end -}}

{{/* buildkitd.toml. */}}
{{- define "slipway.buildkit.config" -}}
{{- if regexMatch "(?m)^[ \\t]*\\[[ \\t]*history[ \\t]*\\]" .Values.buildkit.config -}}
{{- fail "buildkit.config: must not have the table [history]; set buildkit.history" -}}
{{- end -}}
{{- .Values.buildkit.config | trimSuffix "\n" }}
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

{{/* The port of the trace collector. */}}
{{- define "slipway.otel.port" -}}
{{- $url := urlParse .Values.otel.endpoint -}}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) -}}
{{- $port | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end -}}

{{/*
A function as faas-netes would create it: a Deployment and a Service with the function's name and the label faas_function.
Arguments: dict "root" . "name" "builder-fn" "component" "builder" "values" .Values.builder "env" (dict …)
"secrets" (dict FILE SECRET …) "scratch" SIZE "functionLabels" (dict NAME TEXT …), the labels for the gateway
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
  replicas: {{ .values.replicas }}
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
        {{- with .functionLabels }}
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
      terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 12000
        runAsGroup: 12000
        fsGroup: 12000
        seccompProfile:
          type: RuntimeDefault
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      containers:
        - name: {{ .name }}
          image: {{ include "slipway.image" (dict "image" .values.image "appVersion" .root.Chart.AppVersion) }}
          imagePullPolicy: {{ .values.pullPolicy }}
          ports:
            - name: http
              containerPort: 8080
              protocol: TCP
            - name: metrics
              containerPort: 8081
              protocol: TCP
          env:
            {{- range $name, $text := merge (dict) .values.env .env (include "slipway.otel.env" .root | fromYaml) }}
            - name: {{ $name }}
              value: {{ $text | quote }}
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
            {{- if .scratch }}
            - name: temp
              mountPath: /tmp
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
        {{- if .scratch }}
        - name: temp
          emptyDir:
            sizeLimit: {{ .scratch }}
        {{- end }}
      {{- with .values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.affinity }}
      affinity:
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
