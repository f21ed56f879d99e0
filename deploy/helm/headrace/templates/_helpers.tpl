{{- /* Definitions call each other by template, never by include: tests/deploy renders them without Helm. */}}

{{- define "headrace.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (default .Chart.Name .Values.nameOverride) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (default .Chart.Name .Values.nameOverride) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "headrace.serviceAccount" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- template "headrace.fullname" . -}}
{{- else -}}
default
{{- end -}}
{{- end }}

{{- define "headrace.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component | quote }}
{{- with dig "worker" "" . }}
headrace/worker: {{ .name | quote }}
{{- end }}
{{- end }}

{{- define "headrace.labels" -}}
{{- template "headrace.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | quote }}
{{- end }}

{{- /* Environment variables of a process: layers of settings, of which the last wins, and own, which the chart sets; then secrets, but those that are hidden from it. */}}
{{- define "headrace.env" -}}
{{- $settings := dict -}}
{{- range .layers -}}
{{- $settings = mergeOverwrite $settings (deepCopy (default dict .)) -}}
{{- end -}}
{{- range $name, $value := mergeOverwrite $settings .own }}
- name: HEADRACE_{{ upper $name }}
  {{- if or (kindIs "map" $value) (kindIs "slice" $value) }}
  value: {{ toJson $value | quote }}
  {{- else if and (kindIs "float64" $value) (eq (toString (floor $value)) (toString $value)) }}
  value: {{ int64 $value | toString | quote }}
  {{- else }}
  value: {{ toString $value | quote }}
  {{- end }}
{{- end }}
{{- $hidden := .hidden -}}
{{- range $name, $source := .root.Values.secrets }}
{{- if not (has $name $hidden) }}
- name: HEADRACE_{{ upper $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $source.name | quote }}
      key: {{ $source.key | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What every pod has in common. Without enableServiceLinks, a Service would define HEADRACE_PORT. */}}
{{- define "headrace.pod" -}}
serviceAccountName: {{ template "headrace.serviceAccount" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
{{ toYaml . | indent 2 }}
{{- end }}
{{- with dig "nodeSelector" "" .place }}
nodeSelector:
{{ toYaml . | indent 2 }}
{{- end }}
{{- with dig "tolerations" "" .place }}
tolerations:
{{ toYaml . | indent 2 }}
{{- end }}
{{- with dig "affinity" "" .place }}
affinity:
{{ toYaml . | indent 2 }}
{{- end }}
{{- end }}

{{- define "headrace.container" -}}
image: {{ printf "%s:%s" .image.repository (default .root.Chart.AppVersion (dig "tag" "" .image)) | quote }}
imagePullPolicy: {{ default "IfNotPresent" (dig "pullPolicy" "" .image) }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- /* How long Kubernetes waits before it kills a pod: the setting grace, the seconds before it, and a margin. */}}
{{- define "headrace.grace" -}}
{{- $grace := 30 -}}
{{- range .layers -}}
{{- if hasKey (default dict .) "grace" -}}{{- $grace = dig "grace" "" . -}}{{- end -}}
{{- end -}}
{{- add (ceil $grace | int64) (default 0 (dig "before" "" .) | int64) 10 -}}
{{- end }}

{{- define "headrace.files" -}}
{{- if .Values.files.existingClaim -}}
{{- .Values.files.existingClaim -}}
{{- else if .Values.files.create -}}
{{- template "headrace.fullname" . }}-files
{{- end -}}
{{- end }}


{{- /* A number as the text that a trigger's metadata needs: floats of Helm must not become 2e+06. */}}
{{- define "headrace.number" -}}
{{- if and (kindIs "float64" .) (ne (toString (floor .)) (toString .)) -}}
{{- toString . | quote -}}
{{- else -}}
{{- int64 . | toString | quote -}}
{{- end -}}
{{- end }}

{{- /* Names of the models that may have no workers, for the setting scalable_models. */}}
{{- define "headrace.scalable" -}}
{{- $names := list -}}
{{- range .Values.workers -}}
{{- $keda := dig "autoscaling" "keda" (dict) . -}}
{{- if and (dig "enabled" "" $keda) (eq (int (default 0 (dig "minReplicas" "" $keda))) 0) -}}
{{- $names = append $names (dig "servedModelName" (dig "model" "" .) .) -}}
{{- end -}}
{{- end -}}
{{- join "," $names -}}
{{- end }}

{{- /* Whether a model may have no workers: the API must then be ready without one. */}}
{{- define "headrace.readiness" -}}
{{- $path := "/ready" -}}
{{- range .Values.workers -}}
{{- $keda := dig "autoscaling" "keda" (dict) . -}}
{{- if and (dig "enabled" "" $keda) (eq (int (default 0 (dig "minReplicas" "" $keda))) 0) -}}{{- $path = "/live" -}}{{- end -}}
{{- end -}}
{{- if ne .Values.api.readiness "auto" -}}{{- $path = .Values.api.readiness -}}{{- end -}}
{{- $path -}}
{{- end }}
