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
