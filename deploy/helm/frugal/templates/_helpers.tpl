{{- define "frugal.name" -}}
{{ ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "frugal.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "frugal.metadata" -}}
name: {{ include "frugal.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "frugal.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "frugal.claim" -}}
{{ .Values.cache.existingClaim | default (ternary (include "frugal.name" .) "" .Values.cache.claim.enabled) }}
{{- end }}

{{- /* Where probes ask: the port for operators speaks plain HTTP. */}}
{{- define "frugal.operated" -}}
port: {{ ternary "admin" "http" (gt (int .Values.admin.port) 0) }}
{{- if and .Values.tls.secret (not .Values.admin.port) }}, scheme: HTTPS{{ end }}
{{- end }}

{{- /* Variables by name, each once: settings replace the chart's own. */}}
{{- define "frugal.environment" -}}
{{- $all := dict "FRUGAL_LOG__FORMAT" "json" }}
{{- with .Values.model }}
{{- $_ := set $all "FRUGAL_MODEL__SOURCE" . }}
{{- end }}
{{- if .Values.apiKeys.secret }}
{{- $_ := set $all "FRUGAL_AUTH__KEYS_FILE" (printf "/run/secrets/frugal/%s" .Values.apiKeys.key) }}
{{- end }}
{{- if .Values.tls.secret }}
{{- $_ := set $all "FRUGAL_TLS__CERTIFICATE" "/run/secrets/frugal-tls/tls.crt" }}
{{- $_ := set $all "FRUGAL_TLS__KEY" "/run/secrets/frugal-tls/tls.key" }}
{{- end }}
{{- with .Values.admin.port }}
{{- $_ := set $all "FRUGAL_SERVER__ADMIN_LISTEN" (printf "0.0.0.0:%v" .) }}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{- $_ := set $all $name $value }}
{{- end }}
{{- toYaml $all }}
{{- end }}
