{{/*
Where BuildKit's certificates come from: "plaintext" (none), "existing" (secrets of the values), "cert-manager" or "helm".
*/}}
{{- define "slipway.tls.source" -}}
{{- $tls := .Values.buildkit.tls -}}
{{- $existing := or $tls.daemonSecret $tls.clientSecret -}}
{{- if .Values.buildkit.plaintext -}}
{{- if or $existing $tls.certManager.enabled -}}
{{- fail "buildkit.plaintext: should be false with buildkit.tls.daemonSecret, .clientSecret or .certManager.enabled" -}}
{{- end -}}
plaintext
{{- else if not .Values.buildkit.enabled -}}
{{- if or $tls.daemonSecret $tls.certManager.enabled (not $tls.clientSecret) -}}
{{- fail "buildkit.tls: a daemon at buildkit.url needs clientSecret, a secret with ca.crt, tls.crt and tls.key, and neither daemonSecret nor certManager; buildkit.plaintext=true does without certificates" -}}
{{- end -}}
existing
{{- else if $existing -}}
{{- if or $tls.certManager.enabled (not (and $tls.daemonSecret $tls.clientSecret)) -}}
{{- fail "buildkit.tls: set daemonSecret and clientSecret, or neither; certManager needs neither" -}}
{{- end -}}
existing
{{- else if $tls.certManager.enabled -}}
cert-manager
{{- else -}}
helm
{{- end -}}
{{- end -}}

{{/* The name of the secret with the daemon's certificate, in the release's namespace. */}}
{{- define "slipway.tls.daemon" -}}
{{- .Values.buildkit.tls.daemonSecret | default (printf "%s-daemon-tls" (include "slipway.buildkit.name" .)) -}}
{{- end -}}

{{/* The name of the secret with the builder's certificate, in the functions' namespace. */}}
{{- define "slipway.tls.client" -}}
{{- .Values.buildkit.tls.clientSecret | default (printf "%s-client-tls" (include "slipway.buildkit.name" .)) -}}
{{- end -}}

{{/* The name of the secret with the certificate authority, which no pod mounts. */}}
{{- define "slipway.tls.authority" -}}
{{- printf "%s-authority" (include "slipway.buildkit.name" .) -}}
{{- end -}}

{{/* The name that the builder expects in the daemon's certificate; empty: the host of the URL. */}}
{{- define "slipway.tls.serverName" -}}
{{- $tls := .Values.buildkit.tls -}}
{{- if or $tls.serverName .Values.buildkit.enabled -}}
{{- $tls.serverName | default (printf "%s.%s" (include "slipway.buildkit.name" .) .Release.Namespace) -}}
{{- end -}}
{{- end -}}

{{/* The names in the daemon's certificate, separated by commas. */}}
{{- define "slipway.tls.daemonNames" -}}
{{- $service := printf "%s.%s" (include "slipway.buildkit.name" .) .Release.Namespace -}}
{{- list (include "slipway.tls.serverName" .) $service (printf "%s.svc" $service) | uniq | join "," -}}
{{- end -}}

{{/* The names in the builder's certificate. */}}
{{- define "slipway.tls.clientNames" -}}
builder-fn
{{- end -}}

{{/* The name of the job that renews Helm's certificates. Names of CronJobs have at most 52 characters. */}}
{{- define "slipway.tls.renewal" -}}
{{- printf "%s-renewal" (include "slipway.fullname" . | trunc 44 | trimSuffix "-") -}}
{{- end -}}

{{/* Whether a stored certificate is to be made anew: "true" or empty. Arguments: dict "stored" SECRET "names" TEXT "days" DAYS */}}
{{- define "slipway.tls.due" -}}
{{- $annotations := dig "metadata" "annotations" dict .stored -}}
{{- $data := .stored.data | default dict -}}
{{- $end := get $annotations "slipway/not-after" | default "0" | int64 -}}
{{- $third := div (mul .days 86400) 3 -}}
{{- if or (not (and (get $data "tls.crt") (get $data "tls.key"))) (ne .names (get $annotations "slipway/names")) (lt (sub $end (now | unixEpoch | int64)) $third) -}}
true
{{- end -}}
{{- end -}}
