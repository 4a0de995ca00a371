/* Falling asleep without missing a change: cdc/wakeup.py, and the trigger in sql/source.sql.
 *
 * The lock ASLEEP is held by the producer while it sleeps, or shared by writers that saw it awake, until they commit.
 * Nothing but a notification wakes the producer here: POLL_INTERVAL is switched off. Writers go on for as long as they
 * like, and end whenever they like, because a later one would cover up what an earlier one has missed.
 *
 * Each of these leaves something out, and must fail:
 *   -DNO_SECOND_POLL  -DUNLOCK_BEFORE_COMMIT  -DNOTIFY_BEFORE_COMMIT  -DFORGET_AFTER_POLL
 */

#ifndef WRITERS
#define WRITERS 3
#endif

bool asleep;       /* the producer holds the lock */
byte sharing;      /* writers that share it */
bool notified;     /* a notification is waiting for the producer */
bool unpublished;  /* a change has been committed since the last poll */

ltl what_is_committed_is_published { [] (unpublished -> <> !unpublished) }

inline poll() {
    atomic {
        found = unpublished; unpublished = false;
        if
        :: found -> printf("producer: polls, and publishes what it finds\n")
        :: else -> printf("producer: polls, and finds nothing\n")
        fi
    }
}

inline forget_notifications() {
    atomic {
        if
        :: notified -> notified = false; printf("producer: forgets the notification\n")
        :: else
        fi
    }
}

active proctype producer() {
    bool found;
awake:
    poll();
    if
    :: found -> goto awake
    :: else
    fi;
    if
    :: atomic { sharing == 0 -> asleep = true; printf("producer: takes the lock\n") }
    :: atomic { sharing > 0 -> printf("producer: does not get the lock, a writer has yet to commit\n") }; goto awake
    fi;
#ifdef NO_SECOND_POLL
    goto sleep;
#endif
poll_asleep:
    poll();
#ifdef FORGET_AFTER_POLL
    forget_notifications();
#endif
    if
    :: atomic { found -> asleep = false; printf("producer: gives the lock back\n") }; goto awake  /* more than a few */
    :: true
    fi;
sleep:
    printf("producer: sleeps\n");
end_asleep:
    atomic { notified -> notified = false; printf("producer: is woken\n") };
    goto poll_asleep
}

inline notify() {
    atomic {
        if
        :: notifies -> notified = true; notifies = false; printf("writer %d: its notification arrives\n", _pid)
        :: else
        fi
    }
}

inline unlock() {
    atomic {
        if
        :: shares -> sharing--; shares = false; printf("writer %d: gives its share of the lock back\n", _pid)
        :: else
        fi
    }
}

active [WRITERS] proctype writer() {
    bool shares, notifies;
end_idle:
    do
    :: break
    :: do  /* a transaction: the trigger, for one change or several */
       :: atomic {
              if
              :: asleep -> notifies = true; printf("writer %d: makes a change, sees the producer asleep\n", _pid)
              :: !asleep && !shares -> sharing++; shares = true;
                     printf("writer %d: makes a change, sees the producer awake, shares the lock\n", _pid)
              :: !asleep && shares
              fi
          };
#ifdef NOTIFY_BEFORE_COMMIT
          notify();
#endif
          if
          :: break
          :: true
          fi
       od;
#ifdef UNLOCK_BEFORE_COMMIT
       unlock();
#endif
       if
       :: atomic { unpublished = true; printf("writer %d: commits\n", _pid) }
       :: atomic { notifies = false; printf("writer %d: rolls back\n", _pid) }
       fi;
       unlock();
       notify()
    od
}

/* Tells the shortest story of a failure: nobody can go on, and a change is left. */
active proctype witness() {
    timeout -> assert(!unpublished)
}
