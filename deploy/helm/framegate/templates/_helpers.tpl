{{/* Names and labels. */}}
{{- define "framegate.fullname" -}}
{{- if contains "framegate" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-framegate" (.Release.Name | trunc 30 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "framegate.selector" -}}
app.kubernetes.io/name: framegate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Of an object: (dict "root" $ "component" "consumer"). */}}
{{- define "framegate.labels" -}}
{{ include "framegate.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* Of a pod: nothing that changes with the chart's version, which would restart them all. */}}
{{- define "framegate.podLabels" -}}
{{ include "framegate.selector" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Of a stage: (dict "root" $ "stage" "cpu"). */}}
{{- define "framegate.image" -}}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- $digest := get .root.Values.image.digests .stage -}}
{{- if $digest -}}
{{- printf "%s@%s" .root.Values.image.repository $digest | quote -}}
{{- else -}}
{{- printf "%s:%s-%s" .root.Values.image.repository $tag .stage | quote -}}
{{- end -}}
{{- end -}}

{{- define "framegate.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "framegate.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* What every pod of ours has: nothing that it does not need. */}}
{{- define "framegate.pod" -}}
serviceAccountName: {{ include "framegate.serviceAccount" . }}
automountServiceAccountToken: false
# A Service called framegate would set FRAMEGATE_PORT and others, which `framegate` takes for settings.
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "framegate.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Where what an image keeps in its own folders goes instead: a place that can be written to. */}}
{{- define "framegate.home" -}}
- {name: HOME, value: {{ . }}}
- {name: TMPDIR, value: {{ . }}}
- {name: XDG_CACHE_HOME, value: {{ . }}}
- {name: MPLCONFIGDIR, value: {{ . }}}
{{- end -}}

{{/* How to reach the brokers, for `run` and `topics`. */}}
{{- define "framegate.kafkaArgs" -}}
- --bootstrap-servers={{ join "," .Values.kafka.bootstrapServers }}
- --frames-topic={{ .Values.kafka.topics.frames }}
- --verdicts-topic={{ .Values.kafka.topics.verdicts }}
- --dead-topic={{ .Values.kafka.topics.dead }}
{{- if .Values.kafka.client }}
- --client-config=/etc/framegate/client/kafka.properties
{{- end }}
{{- end -}}

{{- define "framegate.kafkaMounts" -}}
{{- if .Values.kafka.client }}
- {name: client, mountPath: /etc/framegate/client, readOnly: true}
{{- end }}
{{- if .Values.kafka.secrets }}
- {name: secrets, mountPath: /etc/framegate/secrets, readOnly: true}
{{- end }}
{{- end -}}

{{- define "framegate.kafkaVolumes" -}}
{{- if .Values.kafka.client }}
- name: client
  configMap: {name: {{ include "framegate.fullname" . }}-client}
{{- end }}
{{- if .Values.kafka.secrets }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range .Values.kafka.secrets }}
      - secret: {{- toYaml . | nindent 10 }}
      {{- end }}
{{- end }}
{{- end -}}

{{/* A cache that is no claim of each pod's own: (dict "root" $ "name" "plans" "cache" .Values.cache.plans). */}}
{{- define "framegate.cacheVolume" -}}
{{- if eq .cache.kind "ephemeral" }}
- name: {{ .name }}
  emptyDir: {sizeLimit: {{ .cache.size }}}
{{- else if eq .cache.kind "shared" }}
- name: {{ .name }}
  persistentVolumeClaim:
    claimName: {{ .cache.existingClaim | default (printf "%s-%s" (include "framegate.fullname" .root) .name) }}
{{- end }}
{{- end -}}

{{/* Its claim's spec: (dict "cache" .Values.cache.plans). */}}
{{- define "framegate.claimSpec" -}}
accessModes: {{- toYaml .cache.accessModes | nindent 2 }}
{{- with .cache.storageClassName }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ .cache.size }}
{{- end -}}

{{/* On a GPU: its share of `resources`, beside cores and memory. */}}
{{- define "framegate.onGpu" -}}
{{- if eq .Values.consumer.device "gpu" }}true{{ end -}}
{{- end -}}

{{- define "framegate.backend" -}}
{{- .Values.consumer.backend | default (ternary "tensorrt" "auto" (eq .Values.consumer.device "gpu")) -}}
{{- end -}}

{{/* Partitions over workers, rounded up: pods beyond that would have nothing to do. */}}
{{- define "framegate.mostReplicas" -}}
{{- div (sub (add .Values.kafka.partitions .Values.consumer.workers) 1) .Values.consumer.workers -}}
{{- end -}}

{{/*
Seconds from SIGTERM to SIGKILL. A worker has the drain and 10 s to leave its group, then the engine that workers share has
the same again, and what is killed after that 5 s to be gone; 5 s are spare.
*/}}
{{- define "framegate.graceSeconds" -}}
{{- add (mul 2 (add (ceil .Values.consumer.drainSeconds | int) 10)) 10 -}}
{{- end -}}

{{/*
Of the consumer where nothing is said: a core for each worker, and on a GPU one for what feeds it; the images in hand, and
what a process is without any (docs/cluster.md has what was measured).
*/}}
{{- define "framegate.resources" -}}
{{- $cores := .Values.consumer.workers -}}
{{- $mebibytes := add 256 (mul .Values.consumer.workers (add 512 .Values.consumer.maxInFlightMib)) -}}
{{- if include "framegate.onGpu" . -}}
{{- $cores = add1 $cores -}}
{{- $mebibytes = add $mebibytes 2048 -}}
{{- end -}}
{{- $own := dict "cpu" (toString $cores) "memory" (printf "%dMi" $mebibytes) -}}
{{- $resources := .Values.consumer.resources | default (dict "requests" $own "limits" $own) -}}
{{- if include "framegate.onGpu" . -}}
{{- include "framegate.withGpu" (dict "root" . "resources" $resources) -}}
{{- else -}}
{{- toYaml $resources -}}
{{- end -}}
{{- end -}}

{{/* With one GPU: (dict "root" $ "resources" .resources). */}}
{{- define "framegate.withGpu" -}}
{{- $resources := deepCopy .resources -}}
{{- $limits := merge (dict .root.Values.gpu.resource 1) ($resources.limits | default dict) -}}
{{- toYaml (set $resources "limits" $limits) -}}
{{- end -}}

{{/* Tells whether something has changed: at the end of a Job's name, in an annotation. */}}
{{- define "framegate.digest" -}}
{{- toJson . | sha256sum | trunc 8 -}}
{{- end -}}
