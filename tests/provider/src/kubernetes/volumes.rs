//! The volumes of a function: its secrets, and `/tmp` beside a read-only root.
//!
//! Volumes and mounts that others added stay. Only those of the two names here are replaced.

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, KeyToPath, LocalObjectReference, PodSpec, ProjectedVolumeSource, Secret,
    SecretProjection, Volume, VolumeMount, VolumeProjection,
};

/// The directory of secrets in a function's container.
const SECRETS_DIRECTORY: &str = "/var/openfaas/secrets";

/// The name of the volume for `/tmp`.
const TEMP_VOLUME: &str = "temp";

/// The types of secrets that hold credentials for registries, which are not mounted.
const PULL_SECRET_TYPES: [&str; 2] = ["kubernetes.io/dockercfg", "kubernetes.io/dockerconfigjson"];

/// Returns the name of the volume with a function's secrets.
pub(super) fn secrets_volume_name(function: &str) -> String {
    format!("{function}-projected-secrets")
}

/// Mounts secrets into every container of a pod, in place of those mounted before. Secrets with registry credentials
/// are added to those with which images are pulled; earlier ones stay, even the same ones.
pub(super) fn mount_secrets_and_add_pull_secrets(pod: &mut PodSpec, function: &str, secrets: &[Secret]) {
    let mut sources = Vec::new();
    for secret in secrets {
        let name = secret.metadata.name.clone().unwrap_or_default();
        if secret
            .type_
            .as_deref()
            .is_some_and(|kind| PULL_SECRET_TYPES.contains(&kind))
        {
            pod.image_pull_secrets
                .get_or_insert_default()
                .push(LocalObjectReference { name });
        } else {
            sources.push(secret_projection(name, secret));
        }
    }
    let volume_name = secrets_volume_name(function);
    remove_volume(pod, &volume_name);
    for container in &mut pod.containers {
        remove_mount(container, &volume_name);
    }
    if sources.is_empty() {
        return;
    }
    for container in &mut pod.containers {
        container.volume_mounts.get_or_insert_default().push(VolumeMount {
            name: volume_name.clone(),
            read_only: Some(true),
            mount_path: SECRETS_DIRECTORY.to_owned(),
            ..VolumeMount::default()
        });
    }
    pod.volumes.get_or_insert_default().push(Volume {
        name: volume_name,
        projected: Some(ProjectedVolumeSource {
            sources: Some(sources),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    });
}

/// Makes the root of a pod's first container read-only, with an empty `/tmp`, or writable without one.
pub(super) fn set_or_clear_read_only_root_of_first_container(pod: &mut PodSpec, read_only: bool) {
    remove_volume(pod, TEMP_VOLUME);
    let Some(container) = pod.containers.first_mut() else {
        return;
    };
    container
        .security_context
        .get_or_insert_default()
        .read_only_root_filesystem = Some(read_only);
    remove_mount(container, TEMP_VOLUME);
    if !read_only {
        return;
    }
    container.volume_mounts.get_or_insert_default().push(VolumeMount {
        name: TEMP_VOLUME.to_owned(),
        mount_path: "/tmp".to_owned(),
        ..VolumeMount::default()
    });
    pod.volumes.get_or_insert_default().push(Volume {
        name: TEMP_VOLUME.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    });
}

/// Returns the part of a projected volume with every key of a secret as a file.
fn secret_projection(name: String, secret: &Secret) -> VolumeProjection {
    let keys = secret.data.iter().flat_map(|data| data.keys());
    let items = keys.map(|key| KeyToPath {
        key: key.clone(),
        path: key.clone(),
        mode: None,
    });
    VolumeProjection {
        secret: Some(SecretProjection {
            name,
            items: Some(items.collect()),
            optional: None,
        }),
        ..VolumeProjection::default()
    }
}

fn remove_volume(pod: &mut PodSpec, name: &str) {
    if let Some(volumes) = &mut pod.volumes {
        volumes.retain(|volume| volume.name != name);
    }
}

fn remove_mount(container: &mut Container, name: &str) {
    if let Some(mounts) = &mut container.volume_mounts {
        mounts.retain(|mount| mount.name != name);
    }
}
