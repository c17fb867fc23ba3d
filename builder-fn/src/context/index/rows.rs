//! A list that never moves what is in it, however long it becomes.

use std::ops::{Index, IndexMut};

/// How many are kept together.
const PIECE: usize = 1024;

/// A list in pieces. One that is in a single piece is copied when it grows, and takes up to three times its size while that
/// lasts; and pieces of this size are used again for whatever comes after.
#[derive(Debug)]
pub(super) struct Rows<T> {
    pieces: Vec<Vec<T>>,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self { pieces: Vec::new() }
    }
}

impl<T: Copy> Rows<T> {
    pub(super) fn len(&self) -> usize {
        match self.pieces.split_last() {
            Some((last, full)) => full.len() * PIECE + last.len(),
            None => 0,
        }
    }

    pub(super) fn push(&mut self, row: T) {
        match self.pieces.last_mut() {
            Some(last) if last.len() < PIECE => last.push(row),
            // Most contexts are small.
            None => self.pieces.push(vec![row]),
            Some(_) => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(row);
                self.pieces.push(piece);
            }
        }
    }

    pub(super) fn swap(&mut self, one: usize, other: usize) {
        let row = self[one];
        self[one] = self[other];
        self[other] = row;
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pieces.iter_mut().flatten()
    }
}

impl<T> Index<usize> for Rows<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.pieces[at / PIECE][at % PIECE]
    }
}

impl<T> IndexMut<usize> for Rows<T> {
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut self.pieces[at / PIECE][at % PIECE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_where_they_were_pushed_on_both_sides_of_a_piece_s_end() {
        let mut rows = Rows::default();
        for at in 0..3 * PIECE + 1 {
            assert_eq!(rows.len(), at);
            rows.push(at);
        }
        assert!((0..rows.len()).all(|at| rows[at] == at));
        rows.swap(PIECE - 1, 3 * PIECE);
        assert_eq!((rows[PIECE - 1], rows[3 * PIECE]), (3 * PIECE, PIECE - 1));
        assert_eq!(rows.iter_mut().count(), rows.len());
    }
}
