{{/* The manifests are those of deploy/kubernetes: templates put values in their places, and repeat nothing. */}}

{{/* A file of manifests/, in the release's namespace. Takes root and file. */}}
{{- define "meshd.manifest" -}}
{{- $text := .root.Files.Get (printf "manifests/%s" .file) -}}
{{- if not $text -}}{{- fail (printf "the chart has no manifests/%s: was it packaged without its links?" .file) -}}{{- end -}}
{{- $text | replace "meshd-system" .root.Release.Namespace -}}
{{- end -}}

{{- define "meshd.image" -}}
{{- with .Values.image -}}
{{- if and .digest (not .tag) -}}
{{ .repository }}@{{ .digest }}
{{- else if .digest -}}
{{ .repository }}:{{ .tag }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Puts the image into a pod's spec. Takes root, pod and container. */}}
{{- define "meshd.setImage" -}}
{{- $image := .root.Values.image -}}
{{- $_ := set .container "image" (include "meshd.image" .root) -}}
{{- if $image.pullPolicy -}}{{- $_ := set .container "imagePullPolicy" $image.pullPolicy -}}{{- end -}}
{{- if $image.pullSecrets -}}
{{- $names := list -}}
{{- range $image.pullSecrets -}}{{- $names = append $names (dict "name" .) -}}{{- end -}}
{{- $_ := set .pod "imagePullSecrets" $names -}}
{{- end -}}
{{- end -}}

{{/* Puts what agents and CA have in common into a pod's template. Takes root, template and values. */}}
{{- define "meshd.setPod" -}}
{{- $pod := .template.spec -}}
{{- $container := index $pod.containers 0 -}}
{{- include "meshd.setImage" (dict "root" .root "pod" $pod "container" $container) -}}
{{- $_ := set $container "resources" .values.resources -}}
{{- $_ := set $pod "nodeSelector" .values.nodeSelector -}}
{{- $_ := set $pod "tolerations" .values.tolerations -}}
{{- if .values.priorityClassName -}}
{{- $_ := set $pod "priorityClassName" .values.priorityClassName -}}
{{- else -}}
{{- $_ := unset $pod "priorityClassName" -}}
{{- end -}}
{{- $metadata := .template.metadata -}}
{{- $_ := set $metadata "labels" (merge (dict) $metadata.labels .values.podLabels) -}}
{{- $annotations := merge (dict) ($metadata.annotations | default dict) .values.podAnnotations -}}
{{- if $annotations -}}{{- $_ := set $metadata "annotations" $annotations -}}{{- end -}}
{{- end -}}
