{{/* Labels of every object. The names of objects are fixed: there is one installation in a cluster. */}}
{{- define "elastic-local.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: elastic-local
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: elastic-local
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of an object that has some of its own. Takes a list: the root, and those, which win. */}}
{{- define "elastic-local.labelsWith" -}}
{{ merge (dict) (index . 1) (include "elastic-local.labels" (index . 0) | fromYaml) | toYaml }}
{{- end }}

{{/* Labels by which a workload finds its pods. Takes the name of the component. */}}
{{- define "elastic-local.selectorLabels" -}}
app.kubernetes.io/name: elastic-local
app.kubernetes.io/component: {{ . }}
{{- end }}

{{/* Labels of pods. Takes a list: the root, the name of the component, and the labels that its values have for it. */}}
{{- define "elastic-local.podLabels" -}}
{{- $root := index . 0 }}
{{- include "elastic-local.selectorLabels" (index . 1) }}
app.kubernetes.io/part-of: elastic-local
{{- with merge (dict) (index . 2) $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "elastic-local.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The objects of a file of this chart, with the chart's labels. Takes a list: the root, and the file. */}}
{{- define "elastic-local.manifests" -}}
{{- $root := index . 0 -}}
{{- range regexSplit "(?m)^---\n" ($root.Files.Get (index . 1)) -1 }}
---
{{ $labels := include "elastic-local.labels" $root | fromYaml -}}
{{ merge (dict "metadata" (dict "labels" $labels)) (fromYaml .) | toYaml }}
{{- end }}
{{- end }}

{{- define "elastic-local.provisionerSettings" -}}
LOG_FORMAT: {{ .Values.log.format }}
{{- with .Values.log.level }}
LOG_LEVEL: {{ . }}
{{- end }}
{{- with .Values.nodeCleanup.classes }}
NODE_CLEANUP_CLASSES: {{ join "," . }}
{{- end }}
{{- range $name, $value := .Values.provisioner.settings }}
{{ $name }}: {{ $value | toString | quote }}
{{- end }}
{{- end }}

{{- define "elastic-local.daemonSettings" -}}
LOG_FORMAT: {{ .Values.log.format }}
{{- with .Values.log.level }}
LOG_LEVEL: {{ . }}
{{- end }}
DRIVER_KIND: {{ .Values.storage.kind }}
{{- with .Values.storage.volumeGroup }}
LVM_VOLUME_GROUP: {{ . | quote }}
{{- end }}
{{- if .Values.storage.thin }}
LVM_USE_THIN_VOLUMES: "true"
{{- end }}
{{- with .Values.storage.thinPool }}
LVM_THIN_POOL: {{ . | quote }}
{{- end }}
{{- with .Values.storage.capacity }}
CAPACITY: {{ . | quote }}
{{- end }}
{{- with .Values.storage.reserve }}
RESERVE: {{ . | quote }}
{{- end }}
CSI: {{ .Values.csi.enabled | quote }}
FLEX_VOLUME: {{ .Values.flexVolume.enabled | quote }}
{{- if ne .Values.kubeletRoot "/var/lib/kubelet" }}
KUBELET_ROOT: {{ .Values.kubeletRoot }}
{{- end }}
{{- if ne .Values.stagingDir "/mnt/storage" }}
STAGING_DIR: {{ .Values.stagingDir }}
{{- end }}
{{- if ne .Values.dataDir "/var/lib/elastic-local" }}
DATA_DIR: {{ .Values.dataDir }}
{{- end }}
{{- if .Values.startupTaint.enabled }}
STARTUP_TAINT: {{ .Values.startupTaint.key | quote }}
{{- end }}
{{- range $name, $value := .Values.daemon.settings }}
{{ $name }}: {{ $value | toString | quote }}
{{- end }}
{{- end }}

{{/* Whether the daemons take taints off their nodes. Empty: they don't. */}}
{{- define "elastic-local.removesTaints" -}}
{{- if or .Values.startupTaint.enabled (and .Values.static.enabled .Values.static.taint) }}true{{ end }}
{{- end }}

{{- define "elastic-local.deviceClasses" -}}
{{- with .Values.deviceClasses.default }}
{{- if not (hasKey $.Values.deviceClasses.classes .) }}
{{- fail (printf "deviceClasses.default is %s, and deviceClasses.classes has no such class" .) }}
{{- end }}
default: {{ . }}
{{- end }}
classes:
  {{- toYaml .Values.deviceClasses.classes | nindent 2 }}
{{- end }}
