//! A vector that never moves its elements when it grows.

use std::ops::{Index, IndexMut};

/// The number of elements in a chunk.
const CHUNK_ELEMENTS: usize = 1024;

/// A vector that is stored in chunks, and so never moves its elements when it grows.
///
/// A contiguous vector is copied when it grows, and takes up to three times its size meanwhile. Chunks are not copied,
/// and the allocator can reuse memory of their size for other things.
#[derive(Debug)]
pub(super) struct ChunkedVec<T> {
    chunks: Vec<Vec<T>>,
}

impl<T> Default for ChunkedVec<T> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<T: Copy> ChunkedVec<T> {
    pub(super) fn len(&self) -> usize {
        match self.chunks.split_last() {
            Some((last, full)) => full.len() * CHUNK_ELEMENTS + last.len(),
            None => 0,
        }
    }

    pub(super) fn push(&mut self, element: T) {
        match self.chunks.last_mut() {
            Some(last) if last.len() < CHUNK_ELEMENTS => last.push(element),
            // Most contexts are small: the first chunk grows as needed.
            None => self.chunks.push(vec![element]),
            Some(_) => {
                let mut chunk = Vec::with_capacity(CHUNK_ELEMENTS);
                chunk.push(element);
                self.chunks.push(chunk);
            }
        }
    }

    pub(super) fn swap(&mut self, one: usize, other: usize) {
        let element = self[one];
        self[one] = self[other];
        self[other] = element;
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.chunks.iter_mut().flatten()
    }
}

impl<T> Index<usize> for ChunkedVec<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.chunks[at / CHUNK_ELEMENTS][at % CHUNK_ELEMENTS]
    }
}

impl<T> IndexMut<usize> for ChunkedVec<T> {
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut self.chunks[at / CHUNK_ELEMENTS][at % CHUNK_ELEMENTS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_on_both_sides_of_a_chunk_boundary() {
        let mut vec = ChunkedVec::default();
        for at in 0..3 * CHUNK_ELEMENTS + 1 {
            assert_eq!(vec.len(), at);
            vec.push(at);
        }
        assert!((0..vec.len()).all(|at| vec[at] == at));
        vec.swap(CHUNK_ELEMENTS - 1, 3 * CHUNK_ELEMENTS);
        assert_eq!(
            (vec[CHUNK_ELEMENTS - 1], vec[3 * CHUNK_ELEMENTS]),
            (3 * CHUNK_ELEMENTS, CHUNK_ELEMENTS - 1)
        );
        assert_eq!(vec.iter_mut().count(), vec.len());
    }
}
