//! Where a connection is: waiting for a request, for its body, or for the handler.
//!
//! hyper reads from the connection in all of these, and how long it may wait differs: the side that reads asks here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What the next bytes of the client would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expecting {
    /// The head of a request, if the client wants anything more.
    Head,
    /// More of a body.
    Body,
    /// Nothing: the handler works.
    Nothing,
}

/// The stage of one connection. The number of the request is part of it, so that a body which a handler left behind does
/// not end the stage of a later request.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    now: AtomicU32,
    /// Whether the last request had a body that nobody read to its end.
    unread: AtomicBool,
}

const KIND: u32 = 0b11;
const HEAD: u32 = 0;
const BODY: u32 = 1;
const NOTHING: u32 = 2;
const NEXT: u32 = 4;

impl Stage {
    /// What is expected, and a number that is another one for each request.
    pub(crate) fn now(&self) -> (Expecting, u32) {
        let now = self.now.load(Ordering::Relaxed);
        let expecting = match now & KIND {
            HEAD => Expecting::Head,
            BODY => Expecting::Body,
            _ => Expecting::Nothing,
        };
        (expecting, now & !KIND)
    }

    /// A request's head is there; with `body`, more of it is to come.
    pub(crate) fn begin(self: &Arc<Self>, body: bool) -> Turn {
        let number = self.now.load(Ordering::Relaxed) & !KIND;
        self.now
            .store(number | if body { BODY } else { NOTHING }, Ordering::Relaxed);
        self.unread.store(body, Ordering::Relaxed);
        Turn(self.clone())
    }

    /// The body of the request that is now answered.
    pub(crate) fn body(self: &Arc<Self>) -> BodyTurn {
        BodyTurn {
            stage: self.clone(),
            number: self.now.load(Ordering::Relaxed) & !KIND,
        }
    }

    /// Whether the client may still be sending what nobody is going to read.
    pub(crate) fn unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }
}

/// A request that is being answered. Dropping it expects the next one.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Stage>);

impl Drop for Turn {
    fn drop(&mut self) {
        let number = self.0.now.load(Ordering::Relaxed) & !KIND;
        self.0
            .now
            .store(number.wrapping_add(NEXT) | HEAD, Ordering::Relaxed);
    }
}

/// A body that is being read. Dropping it expects nothing more of it.
#[derive(Debug)]
pub(crate) struct BodyTurn {
    stage: Arc<Stage>,
    number: u32,
}

impl BodyTurn {
    /// The body was read to its end.
    pub(crate) fn finish(self) {
        if self.stage.now() == (Expecting::Body, self.number) {
            self.stage.unread.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for BodyTurn {
    fn drop(&mut self) {
        let (from, to) = (self.number | BODY, self.number | NOTHING);
        // Where it is another request's turn there is nothing to be done.
        let _ = self
            .stage
            .now
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_through_its_stages() {
        let stage = Arc::new(Stage::default());
        let first = stage.now().1;
        assert_eq!(stage.now().0, Expecting::Head);
        let turn = stage.begin(true);
        let body = stage.body();
        assert_eq!(stage.now(), (Expecting::Body, first));
        drop(body);
        assert_eq!(stage.now(), (Expecting::Nothing, first));
        drop(turn);
        assert_eq!(stage.now().0, Expecting::Head);
        assert_ne!(stage.now().1, first);
    }

    #[test]
    fn a_body_left_behind_does_not_touch_a_later_request() {
        let stage = Arc::new(Stage::default());
        let turn = stage.begin(true);
        let left_behind = stage.body();
        drop(turn);
        let _turn = stage.begin(true);
        drop(left_behind);
        assert_eq!(stage.now().0, Expecting::Body);
    }

    #[test]
    fn a_body_is_unread_until_its_end_was_seen() {
        let stage = Arc::new(Stage::default());
        assert!(!stage.unread());
        let turn = stage.begin(true);
        drop(stage.body());
        drop(turn);
        assert!(stage.unread());
        let turn = stage.begin(true);
        stage.body().finish();
        drop(turn);
        assert!(!stage.unread());
        let turn = stage.begin(true);
        let left_behind = stage.body();
        drop(turn);
        let _turn = stage.begin(true);
        left_behind.finish();
        assert!(stage.unread(), "the end was that of another request's body");
    }

    #[test]
    fn a_request_without_a_body_expects_nothing() {
        let stage = Arc::new(Stage::default());
        let _turn = stage.begin(false);
        assert_eq!(stage.now().0, Expecting::Nothing);
    }
}
