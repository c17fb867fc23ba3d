{{/*
A secret in the cluster, as YAML; {} if there is none, and whenever no cluster is asked, as in `helm template`.
Arguments: dict "root" . "namespace" … "name" …
*/}}
{{- define "slipway.stored.secret" -}}
{{- lookup "v1" "Secret" .namespace .name | toYaml -}}
{{- end -}}

{{/*
A StatefulSet in the cluster, as YAML; {} if there is none, and whenever no cluster is asked.
Arguments: dict "root" . "namespace" … "name" …
*/}}
{{- define "slipway.stored.statefulset" -}}
{{- lookup "apps/v1" "StatefulSet" .namespace .name | toYaml -}}
{{- end -}}
