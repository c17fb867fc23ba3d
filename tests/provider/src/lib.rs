//! A development provider for one machine: the faas-provider REST API over containerd and CNI.
