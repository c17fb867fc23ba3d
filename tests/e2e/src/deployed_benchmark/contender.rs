//! Who builds: builder-fn, on one of the ways to it, or the reference.

/// A way on which a build is submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// builder-fn at its container's address, over the bridge.
    FunctionAddress,
    /// builder-fn at the stack's `BUILDER_URL`, which the launcher forwards.
    BuilderUrl,
    /// builder-fn through the gateway, synchronously.
    Gateway,
    /// `buildctl`, and faas-cli for deployments.
    Reference,
}

impl Contender {
    /// Returns the contender's name in tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::FunctionAddress => "at its address",
            Self::BuilderUrl => "`BUILDER_URL`",
            Self::Gateway => "gateway",
            Self::Reference => "reference",
        }
    }

    /// Returns the contender's part of the names of functions and images.
    pub(super) fn name_part(self) -> &'static str {
        match self {
            Self::FunctionAddress => "address",
            Self::BuilderUrl => "url",
            Self::Gateway => "gateway",
            Self::Reference => "reference",
        }
    }
}
