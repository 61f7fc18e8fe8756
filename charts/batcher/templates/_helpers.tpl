{{- define "batcher.fullname" -}}
{{- if contains "batcher" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-batcher" (.Release.Name | trunc 32 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "batcher.selector" -}}
app.kubernetes.io/name: batcher
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "batcher.labels" -}}
{{ include "batcher.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* Of `image`, whose blanks are those of the chart. */ -}}
{{- define "batcher.image" -}}
{{- $image := mergeOverwrite (deepCopy .root.Values.image) (.image | default dict) -}}
image: {{ printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end -}}

{{- define "batcher.redisUrl" -}}
{{- if .Values.broker.url -}}
{{- if contains "@" .Values.broker.url -}}
{{- fail "broker.url: a URL with a password goes into a Secret; name it as broker.existingSecret" -}}
{{- end -}}
{{- .Values.broker.url -}}
{{- else if .Values.redis.enabled -}}
{{- printf "redis://%s-redis:6379/0" (include "batcher.fullname" .) -}}
{{- else -}}
{{- fail "redis.enabled is false: give broker.url or broker.existingSecret" -}}
{{- end -}}
{{- end -}}

{{- /* What stands in the names of the queues: KEDA has to know them. */ -}}
{{- define "batcher.scope" -}}
{{- .Values.jobs.scope | default (printf "%s-%s" .Release.Namespace (include "batcher.fullname" .)) -}}
{{- end -}}

{{- /* Variables that workers and server share; `env` is a map of more. */ -}}
{{- define "batcher.env" -}}
- name: BATCHER_BROKER
{{- if .root.Values.broker.existingSecret }}
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.broker.existingSecret }}
      key: {{ .root.Values.broker.secretKey }}
{{- else }}
  value: {{ include "batcher.redisUrl" .root | quote }}
{{- end }}
- name: BATCHER_MODEL
  value: {{ .model | quote }}
- name: BATCHER_GRACE
  value: {{ .root.Values.grace | quote }}
- name: BATCHER_LEASE_TTL
  value: {{ .root.Values.leaseTtl | quote }}
- name: BATCHER_SCOPE
  value: {{ include "batcher.scope" .root | quote }}
{{- range $name, $value := .env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- define "batcher.mounts" -}}
- name: jobs
  mountPath: /jobs
- name: tmp
  mountPath: /tmp
{{- if .Values.models.existingClaim }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- end -}}

{{- define "batcher.volumes" -}}
- name: jobs
  persistentVolumeClaim:
    claimName: {{ .Values.jobs.existingClaim | default (printf "%s-jobs" (include "batcher.fullname" .)) }}
- name: tmp
  emptyDir: {}
{{- if .Values.models.existingClaim }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.models.existingClaim }}
    readOnly: true
{{- end }}
{{- end -}}

{{- /* What all pods of ours have; `for` is the entry with nodeSelector and so on. */ -}}
{{- define "batcher.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
# A server lets requests finish for `grace`, and then has its engine save for as long again.
terminationGracePeriodSeconds: {{ add (mul 2 (int .root.Values.grace)) 14 }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .for.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .for.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .for.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
