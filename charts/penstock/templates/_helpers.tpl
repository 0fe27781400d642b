{{- define "penstock.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "penstock.serviceAccountName" -}}
{{ .Values.serviceAccount.name | default (ternary (include "penstock.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "penstock.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* No managed-by label: Penstock finds the workloads that it made by it. Helm adds its own to what it installs. */}}
{{- define "penstock.labels" -}}
{{ include "penstock.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: penstock
{{- end }}

{{/* "yes" when the gRPC server listens beyond the pod's loopback. */}}
{{- define "penstock.grpcIsOpen" -}}
{{- if and .Values.grpc.enabled .Values.grpc.tls.secretName }}
{{- if not (or .Values.grpc.tls.clientCa .Values.grpc.tokenAudience) }}
{{- fail "grpc.tls.secretName opens the gRPC server to the cluster: set grpc.tls.clientCa or grpc.tokenAudience too, so that not anybody can ask" }}
{{- end }}yes{{ end }}
{{- end }}

{{- define "penstock.grpcReviewsTokens" -}}
{{- if and .Values.grpc.enabled .Values.grpc.tokenAudience }}yes{{ end }}
{{- end }}
