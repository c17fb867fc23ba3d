{{/*
Fails if the daemon's volume claims would change: Kubernetes rejects that, and Helm would have applied the other objects
before it notices.
*/}}
{{- define "slipway.buildkit.unchanged" -}}
{{- $name := include "slipway.buildkit.name" . -}}
{{- $stored := include "slipway.stored.statefulset" (dict "root" . "namespace" .Release.Namespace "name" $name) | fromYaml -}}
{{- if $stored -}}
{{- $wanted := .Values.buildkit.persistence -}}
{{- $advice := printf "To change it, run: kubectl -n %s delete statefulset %s --cascade=orphan, and upgrade then. The pods go on meanwhile; claims that exist keep their size and class" .Release.Namespace $name -}}
{{- $claims := dig "spec" "volumeClaimTemplates" (list) $stored -}}
{{- if ne (gt (len $claims) 0) $wanted.enabled -}}
{{- fail (printf "buildkit.persistence.enabled: %t, but the installed daemon has %t, which Kubernetes does not change. %s" $wanted.enabled (not $wanted.enabled) $advice) -}}
{{- end -}}
{{- if $wanted.enabled -}}
{{- $claim := dig "spec" (dict) (first $claims) -}}
{{- $size := dig "resources" "requests" "storage" "" $claim -}}
{{- if ne (include "slipway.bytes" $size) (include "slipway.bytes" $wanted.size) -}}
{{- fail (printf "buildkit.persistence.size: %s, but the installed daemon has %s, which Kubernetes does not change. %s" $wanted.size $size $advice) -}}
{{- end -}}
{{- $class := dig "storageClassName" "" $claim -}}
{{- if ne $class $wanted.storageClass -}}
{{- fail (printf "buildkit.persistence.storageClass: %q, but the installed daemon has %q, which Kubernetes does not change. %s" $wanted.storageClass $class $advice) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
