{{/*
The specs of the Jobs, each with the root as its dot.

A Job's template cannot be changed, so jobs.yaml puts a digest of the whole spec into the Job's name: whatever is changed in
the values, an upgrade meets no Job of that name, or an equal one; the one before goes, as all that a release no longer
has. So each of them may be run again for the same task, by an upgrade of the image, say, and has to bear that: `topics`
and `plan` find what is there already, and `training` and `promote` note on the claim what they have done.

Why not hooks: an upgrade would run them each time and wait for them, with a training for hours. Why no
ttlSecondsAfterFinished: a Job that is gone is made again by the next upgrade, and by whatever keeps a cluster equal to a
repository at once and for ever.
*/}}

{{- define "framegate.job.topics" -}}
backoffLimit: 6
template:
  metadata:
    labels: {{- include "framegate.podLabels" (dict "root" $ "component" "topics") | nindent 6 }}
    # How it logs in lies in a ConfigMap: with other settings it is another Job.
    annotations: {framegate/client: {{ include "framegate.digest" $.Values.kafka.client | quote }}}
  spec:
    {{- include "framegate.pod" $ | nindent 4 }}
    restartPolicy: OnFailure
    containers:
      - name: topics
        image: {{ include "framegate.image" (dict "root" $ "stage" $.Values.consumer.device) }}
        imagePullPolicy: {{ $.Values.image.pullPolicy }}
        securityContext: {{- include "framegate.containerSecurity" $ | nindent 10 }}
        args:
          - topics
          - create
          {{- include "framegate.kafkaArgs" $ | nindent 10 }}
          - --partitions={{ $.Values.kafka.partitions }}
          - --replication={{ $.Values.kafka.createTopics.replication }}
        env:
          {{- include "framegate.home" "/tmp" | nindent 10 }}
          {{- with $.Values.consumer.env }}{{ toYaml . | nindent 10 }}{{ end }}
        {{- with $.Values.consumer.envFrom }}
        envFrom: {{- toYaml . | nindent 10 }}
        {{- end }}
        resources:
          requests: {cpu: 100m, memory: 256Mi}
          limits: {cpu: "1", memory: 512Mi}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
          {{- include "framegate.kafkaMounts" $ | nindent 10 }}
    volumes:
      - {name: tmp, emptyDir: {sizeLimit: 64Mi}}
      {{- include "framegate.kafkaVolumes" $ | nindent 6 }}
{{- end -}}

{{- define "framegate.job.training" -}}
{{- with .Values.training -}}
# What was featurized is kept on a claim, so that another try goes on there; without one it begins anew.
backoffLimit: 2
template:
  metadata:
    labels: {{- include "framegate.podLabels" (dict "root" $ "component" "training") | nindent 6 }}
  spec:
    {{- include "framegate.pod" $ | nindent 4 }}
    restartPolicy: Never
    {{- with .nodeSelector }}
    nodeSelector: {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with .tolerations }}
    tolerations: {{- toYaml . | nindent 6 }}
    {{- end }}
    containers:
      - name: training
        image: {{ include "framegate.image" (dict "root" $ "stage" "trainer") }}
        imagePullPolicy: {{ $.Values.image.pullPolicy }}
        securityContext: {{- include "framegate.containerSecurity" $ | nindent 10 }}
        # What it was asked to do stands beside what came of it: the same again is nothing to do.
        command:
          - /bin/sh
          - -ec
          - |
            if [ "$(cat -- "$OUT.trained" 2>/dev/null)" = "$TASK" ]; then echo "$OUT was trained already: nothing to do"; exit 0; fi
            framegate "$@"
            printf %s "$TASK" > "$OUT.trained"
          - framegate
        args:
          - train
          - {{ .source }}
          - --out=/bundles/{{ .out }}
          - --features=/scratch/features
          {{- with .args }}{{ toYaml . | nindent 10 }}{{ end }}
        env:
          {{- include "framegate.home" "/scratch" | nindent 10 }}
          - {name: OUT, value: {{ printf "/bundles/%s" .out | quote }}}
          - {name: TASK, value: {{ include "framegate.digest" (list .source .out .args) | quote }}}
          {{- with .env }}{{ toYaml . | nindent 10 }}{{ end }}
        {{- with .envFrom }}
        envFrom: {{- toYaml . | nindent 10 }}
        {{- end }}
        resources: {{- toYaml .resources | nindent 10 }}
        volumeMounts:
          - {name: bundle-claim, mountPath: /bundles}
          - {name: scratch, mountPath: /scratch}
    volumes:
      - name: bundle-claim
        persistentVolumeClaim: {claimName: {{ $.Values.bundle.claim }}}
      - name: scratch
        {{- if .scratch.claim }}
        persistentVolumeClaim: {claimName: {{ .scratch.claim }}}
        {{- else }}
        emptyDir: {sizeLimit: {{ .scratch.size }}}
        {{- end }}
{{- end -}}
{{- end -}}

{{- define "framegate.job.promote" -}}
{{- with .Values.promote -}}
{{- $places := printf "- {name: FROM, value: %s}\n- {name: TO, value: %s}" (printf "/bundles/%s" .from | quote) (printf "/bundles/%s" .to | quote) -}}
backoffLimit: 0
template:
  metadata:
    labels: {{- include "framegate.podLabels" (dict "root" $ "component" "promote") | nindent 6 }}
  spec:
    {{- include "framegate.pod" $ | nindent 4 }}
    restartPolicy: Never
    initContainers:
      # A bundle that does not answer as it did when it was trained goes no further.
      - name: verify
        image: {{ include "framegate.image" (dict "root" $ "stage" "cpu") }}
        imagePullPolicy: {{ $.Values.image.pullPolicy }}
        securityContext: {{- include "framegate.containerSecurity" $ | nindent 10 }}
        command:
          - /bin/sh
          - -ec
          - |
            if [ "$(cat -- "$TO.promoted" 2>/dev/null)" = "$FROM" ]; then echo "$FROM was promoted already: nothing to do"; exit 0; fi
            exec framegate "$@"
          - framegate
        args: [verify, {{ printf "/bundles/%s" .from | quote }}, --backend={{ .backend }}]
        env:
          {{- include "framegate.home" "/tmp" | nindent 10 }}
          {{- $places | nindent 10 }}
        resources: {{- toYaml .resources | nindent 10 }}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
          - {name: bundle-claim, mountPath: /bundles, readOnly: true}
    containers:
      # Written beside and renamed: whoever looks sees the old one whole or the new one whole.
      - name: promote
        image: {{ include "framegate.image" (dict "root" $ "stage" "cpu") }}
        imagePullPolicy: {{ $.Values.image.pullPolicy }}
        securityContext: {{- include "framegate.containerSecurity" $ | nindent 10 }}
        # Beside it stands what was promoted: the same again, after an upgrade, must not undo what was promoted by hand since.
        command:
          - /bin/sh
          - -ec
          - |
            if [ "$(cat -- "$TO.promoted" 2>/dev/null)" = "$FROM" ]; then exit 0; fi
            cp -- "$FROM" "$TO.part"; sync -- "$TO.part"; mv -f -- "$TO.part" "$TO"
            printf %s "$FROM" > "$TO.promoted"
        env: {{- $places | nindent 10 }}
        resources: {{- toYaml .resources | nindent 10 }}
        volumeMounts:
          - {name: bundle-claim, mountPath: /bundles}
    volumes:
      - name: bundle-claim
        persistentVolumeClaim: {claimName: {{ $.Values.bundle.claim }}}
      - {name: tmp, emptyDir: {sizeLimit: 1Gi}}
{{- end -}}
{{- end -}}

{{- define "framegate.job.plan" -}}
{{- with .Values.plan -}}
{{- $location := .location | default $.Values.bundle.location -}}
completionMode: Indexed
completions: {{ .nodes }}
parallelism: {{ .nodes }}
backoffLimit: 2
template:
  metadata:
    labels: {{- include "framegate.podLabels" (dict "root" $ "component" "plan") | nindent 6 }}
  spec:
    {{- include "framegate.pod" $ | nindent 4 }}
    restartPolicy: Never
    {{- with $.Values.gpu.runtimeClassName }}
    runtimeClassName: {{ . }}
    {{- end }}
    # A node each, while there are as many: a plan holds for one kind of GPU and driver.
    topologySpreadConstraints:
      - topologyKey: kubernetes.io/hostname
        maxSkew: 1
        whenUnsatisfiable: ScheduleAnyway
        labelSelector:
          matchLabels:
            {{- include "framegate.selector" $ | nindent 12 }}
            app.kubernetes.io/component: plan
    {{- with $.Values.consumer.nodeSelector }}
    nodeSelector: {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $.Values.consumer.tolerations }}
    tolerations: {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $.Values.consumer.affinity }}
    affinity: {{- toYaml . | nindent 6 }}
    {{- end }}
    containers:
      - name: plan
        image: {{ include "framegate.image" (dict "root" $ "stage" "gpu") }}
        imagePullPolicy: {{ $.Values.image.pullPolicy }}
        securityContext: {{- include "framegate.containerSecurity" $ | nindent 10 }}
        args:
          - build
          - {{ $location }}
          - --backend={{ include "framegate.backend" $ }}
          - --bundle-cache=/tmp/bundles
          - --plans=/var/cache/framegate/plans
          {{- with $.Values.gpu.memoryMb }}
          - --memory-mb={{ . }}
          {{- end }}
          - --json
        env:
          {{- include "framegate.home" "/tmp" | nindent 10 }}
          {{- with $.Values.consumer.env }}{{ toYaml . | nindent 10 }}{{ end }}
        {{- with $.Values.consumer.envFrom }}
        envFrom: {{- toYaml . | nindent 10 }}
        {{- end }}
        resources: {{- include "framegate.withGpu" (dict "root" $ "resources" .resources) | nindent 10 }}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
          - {name: plans, mountPath: /var/cache/framegate/plans}
          {{- if $.Values.bundle.claim }}
          - {name: bundle-claim, mountPath: /bundles, readOnly: true}
          {{- end }}
    volumes:
      - name: tmp
        emptyDir: {sizeLimit: 4Gi}
      {{- include "framegate.cacheVolume" (dict "root" $ "name" "plans" "cache" $.Values.cache.plans) | nindent 6 }}
      {{- with $.Values.bundle.claim }}
      - name: bundle-claim
        persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
      {{- end }}
{{- end -}}
{{- end -}}
