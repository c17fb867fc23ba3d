//! Limits the rollbacks that this process runs at the same time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::RollbackError;
use crate::function_id::FunctionId;

/// The limit on the rollbacks that run at the same time.
const ROLLBACKS_MAX: usize = 32;

/// The limit on the rollbacks of one tenant that run at the same time.
const ROLLBACKS_OF_ONE_TENANT_MAX: usize = 8;

/// The rollbacks that run, by their functions. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct RollbackPermits(Arc<Mutex<HashMap<FunctionId, String>>>);

/// The permit of one rollback, until it is dropped.
#[derive(Debug)]
pub(super) struct RollbackPermit {
    permits: RollbackPermits,
    function: FunctionId,
}

impl RollbackPermits {
    /// Admits the rollback `id` of a function.
    ///
    /// # Errors
    /// Fails while another rollback of the function runs, or as many as may.
    pub(super) fn admit(&self, function: FunctionId, id: &str) -> Result<RollbackPermit, RollbackError> {
        let mut running = self.lock();
        if let Some(other) = running.get(&function) {
            return Err(RollbackError::UnderWay { id: other.clone() });
        }
        let of_tenant = running.keys().filter(|other| other.tenant() == function.tenant());
        let is_tenants_limit =
            function.tenant().is_some() && of_tenant.count() >= ROLLBACKS_OF_ONE_TENANT_MAX;
        if is_tenants_limit || running.len() >= ROLLBACKS_MAX {
            let limit = if is_tenants_limit {
                ROLLBACKS_OF_ONE_TENANT_MAX
            } else {
                ROLLBACKS_MAX
            };
            return Err(RollbackError::Busy { limit });
        }
        running.insert(function.clone(), id.to_owned());
        drop(running);
        Ok(RollbackPermit {
            permits: self.clone(),
            function,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionId, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RollbackPermit {
    fn drop(&mut self) {
        self.permits.lock().remove(&self.function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollbacks_are_limited_to_one_of_a_function_and_in_number_per_tenant_and_process() {
        let permits = RollbackPermits::default();
        let admit = |name: &str| permits.admit(FunctionId::new(name, "fn"), name);
        let first = admit("f").expect("the first");
        assert!(matches!(admit("f"), Err(RollbackError::UnderWay { id }) if id == "f"));
        let others: Vec<_> = (1..ROLLBACKS_MAX)
            .map(|at| admit(&at.to_string()).expect("within the limit"))
            .collect();
        assert!(matches!(admit("g"), Err(RollbackError::Busy { .. })));
        drop(first);
        drop(admit("f").expect("the first has ended"));
        assert_eq!(others.len(), ROLLBACKS_MAX - 1);

        let permits = RollbackPermits::default();
        let admit = |tenant: &str, at: usize| {
            let function = FunctionId::new(at.to_string(), "fn").of_tenant(&tenant.parse().expect("a name"));
            permits.admit(function, "r")
        };
        let of_one: Vec<_> = (0..ROLLBACKS_OF_ONE_TENANT_MAX)
            .map(|at| admit("acme", at).expect("within its limit"))
            .collect();
        assert!(matches!(
            admit("acme", ROLLBACKS_OF_ONE_TENANT_MAX),
            Err(RollbackError::Busy {
                limit: ROLLBACKS_OF_ONE_TENANT_MAX
            })
        ));
        drop(admit("globex", 0).expect("another tenant"));
        drop(of_one);
    }
}
