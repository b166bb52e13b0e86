// Where the schemas of KEDA's and the Prometheus operator's resources lie. Nothing is compiled: go.sum pins what is read.
module framegate/crds

go 1.24

require (
	github.com/kedacore/keda/v2 v2.21.0
	github.com/prometheus-operator/prometheus-operator v0.94.0
)
