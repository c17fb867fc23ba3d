//! The image of the file system with BuildKit's data. The launcher makes and checks it before the stack's supervisor
//! mounts it, because both can take minutes.

use std::{fs::File, io};

use tokio::fs;

use crate::{
    command::{new_command, run_program},
    directories::{StackDir, free_space_bytes},
    error::{IoResultExt as _, Result},
    progress::ProgressSink,
};

/// Makes the image at a stack's first start, with `max_bytes` or three quarters of the free space, whichever is less;
/// checks it at later starts, repairs it if it is damaged, and makes it anew if that fails.
pub(crate) async fn make_disk_image_or_repair_existing(
    dir: &StackDir,
    max_bytes: u64,
    progress: &ProgressSink,
) -> Result<()> {
    let image = dir.buildkit_disk_image();
    if fs::try_exists(&image).await.with_operation("find", &image)? {
        if run_program(new_command("e2fsck").arg("-p").arg(&image))
            .await
            .is_ok()
        {
            return Ok(());
        }
        progress.emit_progress_line("buildkit", "repairing the file system with its data");
        if run_program(new_command("e2fsck").arg("-fy").arg(&image))
            .await
            .is_ok()
        {
            return Ok(());
        }
        // It has only a cache.
        progress.emit_progress_line("buildkit", "cannot repair the file system; making a new one");
        fs::remove_file(&image).await.with_operation("remove", &image)?;
    }
    delete_old_data_and_create_mount_point(dir, progress).await?;
    let new = image.with_extension("new");
    File::create(&new)
        .with_operation("create", &new)?
        .set_len(max_bytes.min(free_space_bytes(&dir.root)? / 4 * 3))
        .with_operation("resize", &new)?;
    run_program(
        new_command("mkfs.ext4")
            .args(["-q", "-F", "-m", "0", "-i", "4096", "-O", "^resize_inode"])
            .args(["-E", "lazy_itable_init=1,lazy_journal_init=1"])
            .arg(&new),
    )
    .await?;
    fs::rename(&new, &image).await.with_operation("rename", &new)
}

/// Deletes for good the data that an earlier launcher, which did not limit it, kept at the mount point, and creates the
/// mount point as an empty directory; unmounts nothing.
async fn delete_old_data_and_create_mount_point(dir: &StackDir, progress: &ProgressSink) -> Result<()> {
    let target = dir.part_data_directory("buildkit");
    if let Err(error) = fs::remove_dir(&target).await
        && error.kind() != io::ErrorKind::NotFound
    {
        progress.emit_progress_line("buildkit", "removing the data of an earlier launcher");
        fs::remove_dir_all(&target)
            .await
            .with_operation("remove", &target)?;
    }
    fs::create_dir_all(&target)
        .await
        .with_operation("create", &target)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

    use super::*;

    /// The size of a test's image, in bytes.
    const TEST_IMAGE_BYTES: u64 = 16 << 20;

    /// Returns the handle of the stack directory `root`, in which the parent directory of BuildKit's data is created.
    fn stack_dir_with_data_directory_created(root: &Path) -> StackDir {
        fs::create_dir_all(root.join("data")).unwrap();
        StackDir {
            name: "test".into(),
            root: root.into(),
        }
    }

    /// Makes or checks the image, and returns its inode and its size in bytes.
    async fn prepare_and_return_inode_and_size(dir: &StackDir) -> (u64, u64) {
        make_disk_image_or_repair_existing(dir, TEST_IMAGE_BYTES, &ProgressSink::discarding())
            .await
            .unwrap();
        let image = fs::metadata(dir.buildkit_disk_image()).unwrap();
        (image.ino(), image.len())
    }

    #[tokio::test]
    async fn the_data_of_an_earlier_launcher_is_replaced_by_an_image_and_a_mount_point() {
        let root = tempfile::tempdir().unwrap();
        let dir = stack_dir_with_data_directory_created(root.path());
        let old = dir.part_data_directory("buildkit").join("runc/snapshots");
        fs::create_dir_all(&old).unwrap();
        fs::write(old.join("file"), "old").unwrap();
        assert_eq!(prepare_and_return_inode_and_size(&dir).await.1, TEST_IMAGE_BYTES);
        let mut mount_point = fs::read_dir(dir.part_data_directory("buildkit")).unwrap();
        assert!(mount_point.next().is_none());
    }

    #[tokio::test]
    async fn an_intact_image_is_kept_and_a_damaged_one_is_made_anew() {
        let root = tempfile::tempdir().unwrap();
        let dir = stack_dir_with_data_directory_created(root.path());
        let first = prepare_and_return_inode_and_size(&dir).await;
        assert_eq!(prepare_and_return_inode_and_size(&dir).await, first);
        fs::write(dir.buildkit_disk_image(), "damaged").unwrap();
        assert_eq!(prepare_and_return_inode_and_size(&dir).await.1, TEST_IMAGE_BYTES);
    }
}
